#!/usr/bin/env bash
# Tests and measures training with CUDA graphs on one GPU, in at most ten minutes:
#   bash benchmarks/gpu_check.sh [folder]     (default gpu_check, which git ignores; PYTHON=... chooses the Python)
# Writes tests.txt, gpu.json (images/s with graphs and without, kernels, memory, differences) and
# run.json of 30,000 steps of 64 images, a tenth of the 2019 study's protocol.
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu_check}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,driver_version,clocks.sm --format=csv | tee "$out/gpu.txt"
"$python" -c "import torch; print(torch.__version__, torch.cuda.is_available())" | tee -a "$out/gpu.txt"

# 1. graphs are recorded, equal usual steps and resume (180 s)
timeout 180 "$python" -m pytest tests/test_cuda.py -q -x -p no:cacheprovider \
  -k "graphs or resumes" 2>&1 | tee "$out/tests.txt" | tail -15

# 2. speed, kernels, memory, 1,000 steps with graphs and without, four at once (300 s)
timeout 300 "$python" benchmarks/gpu.py --json "$out/gpu.json" 2>&1 | tee "$out/gpu.log" | tail -15

# 3. a whole run with its pictures, a tenth as long as the protocol (90 s)
rm -rf "$out/runs"
timeout 90 "$python" train.py --config config/twoD_factor.yaml --runs "$out/runs" name=tenth \
  train.steps=30000 train.batch_size=64 train.device=cuda train.cuda_graphs=true 2>&1 | tail -2
cp "$out/runs/tenth/seed0/run.json" "$out/run.json" && grep train_seconds "$out/run.json"
