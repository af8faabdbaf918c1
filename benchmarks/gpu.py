"""What CUDA graphs change in training on a GPU: python benchmarks/gpu.py --json gpu.json

Each measurement is a process of its own; nothing else should run. On a CPU there are no graphs.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import files
import runs
from data import Batches, load_dataset, mix
from training.device import choose_device, hardware
from training.folder import provenance
from training.log import Window

CONFIG = Path(__file__).resolve().parents[1] / "config"
CASES = {  # configuration, batch size -> images/s that an H200 should reach
    ("twoD_vae", 128): 100_000,
    ("twoD_vae", 64): 55_000,
    ("twoD_factor", 128): 60_000,
    ("twoD_infogan", 64): 15_000,
    ("twoD_infogan_broadcast", 32): None,
}
PROFILED = 20  # steps
AT_ONCE = 4  # runs that share a GPU


class Training:
    """A run's data and model, and its steps so far, with or without graphs."""

    def __init__(self, config: str, size: int, graphs: bool):
        device = choose_device("auto")
        values = runs.resolve(CONFIG / f"{config}.yaml", [f"train.batch_size={size}"])
        self.data, self.model = runs.build(values, device)
        self.train_step = runs.train_step(self.model, self.data) if graphs else self._usual_step
        self.batches, self.window = Batches(len(self.data), size, seed=0), Window(device)
        self.done = 0
        self.model.train()

    def _usual_step(self, index: Tensor, step: int) -> dict[str, Tensor]:
        return self.model.train_step(self.data.batch(index, self.model.dtype), step)

    def steps(self, count: int) -> dict[str, float]:
        """Take some steps as train.py does; returns the mean of every term."""
        for step in range(self.done, self.done + count):
            torch.manual_seed(mix(0, step, 0))
            self.window.add(self.train_step(self.batches[step], step))
        self.done += count
        return self.window.mean()  # device sync


def measure(config: str, size: int, graphs: bool, seconds: float) -> dict[str, Any]:
    """Images per second; per step the time of all kernels and their number; memory; obstacle."""
    training, count = Training(config, size, graphs), 0
    training.steps(20)  # warms up
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        training.steps(PROFILED)
        count += PROFILED
    speed = count * size / (time.perf_counter() - begin)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        training.steps(PROFILED)
    kernels = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1000
    on_gpu = torch.cuda.is_available()
    return {
        "images_per_s": round(speed),
        "kernel_ms": round(busy / PROFILED, 3),
        "kernels": len(kernels) / PROFILED,
        "memory_mb": torch.cuda.max_memory_reserved() >> 20 if on_gpu else None,
        "obstacle": getattr(training.train_step, "obstacle", None),
    }


def largest_difference(config: str, size: int, steps: int) -> float:
    """The largest difference of a weight after some steps with graphs and without."""
    trainings = [Training(config, size, graphs) for graphs in (True, False)]
    for training in trainings:
        training.steps(steps)
    pairs = zip(*(training.model.state_dict().values() for training in trainings), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def encode_seconds() -> float:
    """Seconds in which a VAE encodes the whole data set."""
    training = Training("twoD_vae", 128, graphs=False)
    training.model.eval()
    runs.encode(training.model, training.data, range(4096))  # warms up
    begin = time.perf_counter()
    runs.encode(training.model, training.data)
    return round(time.perf_counter() - begin, 2)


def main() -> int:
    """Measure all cases in child processes; print a line for each and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="file for the numbers")
    parser.add_argument("--seconds", type=float, default=4, help="length of a measurement")
    parser.add_argument("--steps", type=int, default=1000, help="steps with graphs and without")
    options = parser.parse_args()
    load_dataset("dsprites")  # rendered and cached before the first measurement
    report = {"hardware": hardware(choose_device("auto"))} | provenance() | {"cases": {}}
    with ProcessPoolExecutor(AT_ONCE, get_context("spawn"), max_tasks_per_child=1) as children:
        for (config, size), bar in CASES.items():
            row = report["cases"][f"{config} {size}"] = {"bar": bar}
            for name, graphs in {"graphs": True, "usual": False}.items():
                task = children.submit(measure, config, size, graphs, options.seconds)
                row[name] = task.result()
            print(config, size, json.dumps(row), flush=True)
            files.write(options.json, json.dumps(report, indent=1) + "\n")
        report["encode_s"] = children.submit(encode_seconds).result()
        arguments = "twoD_factor", 128, True, options.seconds
        tasks = [children.submit(measure, *arguments) for _ in range(AT_ONCE)]
        report["at_once"] = [task.result() for task in tasks]
        tasks = [children.submit(largest_difference, *case, options.steps) for case in CASES]
        for row, task in zip(report["cases"].values(), tasks, strict=True):
            row["largest_difference"] = task.result()
    files.write(options.json, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
