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
from torch.profiler import ProfilerActivity, profile

import files
from benchmarks.speed import STEPS, Training
from data import load_dataset
from training.device import choose_device, hardware
from training.folder import provenance

CASES = {  # configuration, batch size -> images/s that an H200 should reach
    ("twoD_vae", 128): 100_000,
    ("twoD_vae", 64): 55_000,
    ("twoD_factor", 128): 60_000,
    ("twoD_infogan", 64): 15_000,
    ("twoD_infogan_broadcast", 32): None,
}
AT_ONCE = 4  # runs that share a GPU


def measure(config: str, size: int, graphs: bool, seconds: float) -> dict[str, Any]:
    """Images per second; per step the time of all kernels and their number; memory; obstacle."""
    training = Training(config, size, graphs)
    training.work()  # warms up
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        training.work()
    speed = (training.done - STEPS) * size / (time.perf_counter() - begin)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        training.work()
    kernels = [event for event in profiler.events() if event.device_type.name == "CUDA"]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1000
    on_gpu = torch.cuda.is_available()
    return {
        "images_per_s": round(speed),
        "kernel_ms": round(busy / STEPS, 3),
        "kernels": len(kernels) / STEPS,
        "memory_mb": torch.cuda.max_memory_reserved() >> 20 if on_gpu else None,
        "obstacle": getattr(training.train_step, "obstacle", None),
    }


def largest_difference(config: str, size: int, steps: int) -> float:
    """The largest difference of a weight after some steps with graphs and without."""
    trainings = [Training(config, size, graphs) for graphs in (True, False)]
    for training in trainings:
        while training.done < steps:
            training.work()
    pairs = zip(*(training.model.state_dict().values() for training in trainings), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


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
