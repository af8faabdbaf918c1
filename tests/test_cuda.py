"""On a GPU: what a run computes, that it resumes, and that it never waits outside its log."""

import subprocess
import sys
import warnings

import pytest
import torch
from conftest import CONFIGS

import evaluate
import train
from data import load_dataset
from models import build_model
from training import choose_precision, load_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CUDA = torch.device("cuda")
COMPILED = ("twoD", "twoD_factor", "twoD_affine", "twoD_infogan_sn")
STEPS = [(path, False) for path in CONFIGS] + [(p, True) for p in CONFIGS if p.stem in COMPILED]
names = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def make_model(path, *overrides):
    values = train.resolve(path, ["train.device=auto", *overrides])
    data = load_dataset("dsprites").to(CUDA)
    return train.make_model(values, data, CUDA), data


def batch(data, dtype, n=32, seed=0):
    return data.batch(data.random_index(n, seed), dtype)


@names
def test_codes_and_drawings_are_those_of_a_cpu(path):
    values = train.resolve(path, [])
    torch.manual_seed(0)
    model = build_model((1, 64, 64), values["model"], values["objective"], 1000).eval()
    x = batch(load_dataset("dsprites"), torch.float32)
    z = model.sample(32, torch.Generator().manual_seed(0))
    found = []
    for device in ("cpu", CUDA):
        model.to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            found.append([model.encode(x.to(device)).cpu(), model.decode(z.to(device)).cpu()])
    torch.testing.assert_close(found[1], found[0], rtol=5e-3, atol=5e-3)  # TF32


@pytest.mark.parametrize(
    ("path", "compiled"), STEPS, ids=lambda value: getattr(value, "stem", value)
)
def test_a_step_never_waits_for_the_gpu(path, compiled):
    torch._dynamo.reset()
    model, data = make_model(path, f"train.compile={str(compiled).lower()}")
    model.train()
    x = batch(data, model.dtype)
    for step in range(20_000, 20_004):  # by now all has begun; 4: r1_every
        model.train_step(x, step)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(20_004, 20_008):
                terms = model.train_step(batch(data, model.dtype, seed=step), step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    assert not waits
    assert all(term.isfinite() for term in terms.values())


@names
def test_a_run_on_the_gpu_goes_on_where_it_stopped(command, tmp_path, path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    for runs, steps in ((straight, 6), (broken, 3), (broken, 6)):
        assert train.main(command(path, "train.device=cuda", runs=runs, steps=steps)) == 0
    states = [load_checkpoint(runs / "small/seed0")["model"] for runs in (straight, broken)]
    # Some gradients are sums in no fixed order, and Adam makes whole steps of the smallest.
    inexact = path.stem == "twoD_affine" or "infogan" in path.stem
    torch.testing.assert_close(*states, rtol=0, atol=0.02 if inexact else 0)
    arguments = ["--checkpoint", str(straight / "small/seed0"), "--out", str(tmp_path / "scores")]
    assert evaluate.main([*arguments, "--metrics", "mig", "--device", "cuda"]) == 0


@pytest.mark.parametrize("name", ["twoD", "twoD_infogan"])
def test_one_process_of_torchrun_trains_by_nccl(command, tmp_path, name):
    arguments = command(f"config/{name}.yaml", "train.device=cuda")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", "train.py"]
    done = subprocess.run([sys.executable, *torchrun, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = [*torchrun[:-2], "--nproc_per_node=2", "train.py", *arguments, "name=two"]
    if torch.cuda.device_count() == 1:
        done = subprocess.run([sys.executable, *two], capture_output=True, text=True)
        assert done.returncode != 0
        assert "processes, but 1 GPUs" in done.stderr


def test_bf16_and_the_fused_optimiser_are_taken():
    model, data = make_model("config/twoD.yaml")
    assert model.dtype == choose_precision("auto", CUDA) == torch.bfloat16
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.train_step(batch(data, model.dtype), 0)
    called = {event.key for event in profile.key_averages()}
    assert "aten::_fused_adam_" in called
