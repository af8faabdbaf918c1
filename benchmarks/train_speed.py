"""Images a second, the plain loop beside ours: python benchmarks/train_speed.py [--cases vae_128]

Every measurement is a process of its own, plain, ours and, for some, ours with train.compile in
turn (A B C A B C), nothing else should run. Prints a table and writes JSON: median and spread of
images/s, ratios, FLOP/s against the fastest matrix product of this machine, peak memory (of the
process on a CPU, of what torch has taken of a GPU).
"""

import argparse
import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

if __name__ == "__main__":  # this folder has a `metrics` of its own
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch.utils.flop_counter import FlopCounterMode

import config
from benchmarks.plain import plain_batches, plain_encoding, plain_infogan, plain_layers, plain_vae
from data import DATASETS, ImageData, PackedImages, load_dataset
from evaluate import encode
from models import MODELS, InfoGAN, build_model
from models.fast import keep_freed_memory
from models.objectives import OBJECTIVES
from training import Batches, Log, choose_device, choose_precision, hardware, provenance, train

COUNTED = 4  # steps: a multiple of r1_every
ENCODED = 50_000  # images; no more are unpacked for the plain loop's data set
WITHOUT_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}  # bf16 units off; AVX2 machines are below it


class Case(NamedTuple):
    """What is timed: a configuration, its batch size, windows of so many steps, environment.

    compile: also with train.compile.
    """

    config: str
    batch_size: int
    window: int
    environment: dict[str, str] = {}  # noqa: RUF012
    encode: bool = False
    compile: bool = False


CASES = {
    "vae_128": Case("twoD", 128, 40, compile=True),
    "vae_64": Case("twoD", 64, 80, compile=True),
    "vae_128_without_bf16": Case("twoD", 128, 20, WITHOUT_BF16),
    "infogan": Case("twoD_infogan", 64, 10, compile=True),
    "infogan_sn": Case("twoD_infogan_sn", 64, 20, compile=True),
    "infogan_broadcast": Case("twoD_infogan_broadcast", 32, 40, compile=True),
    "encode": Case("twoD", 128, 0, encode=True),
}


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=2, choices=range(1, 21), metavar="N")
    parser.add_argument("--seconds", type=float, default=8, help="of every measurement")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=there)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 0 < options.seconds < 3600:
        parser.error(f"--seconds: {options.seconds:g} is not allowed; allowed: above 0, below 3600")
    try:
        device = choose_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    if options.one:
        print(json.dumps(measure(*options.one, options.seconds, device)))
        return 0
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    load_dataset("dsprites")  # rendered and cached before anything is timed
    # bf16 only where the hardware computes in it: emulated products take minutes
    dtypes = dict.fromkeys((torch.float32, choose_precision("auto", device)))
    peaks = {str(dtype).removeprefix("torch."): matmul_peak(dtype, device) for dtype in dtypes}
    facts = {"hardware": hardware(device), "matmul_flops": peaks} | provenance()
    print(f"{facts['hardware']}")
    print("matrix product: " + ", ".join(f"{n} {f / 1e9:,.0f} GFLOP/s" for n, f in peaks.items()))
    header = f"{'case':<22}{'plain':>16}{'ours':>16}{'ratio':>7}{'compiled':>16}{'ratio':>7}"
    print(f"{header}{'GFLOP/s':>9}{'of peak':>9}{'MB':>7}")
    results = {}
    for name in options.cases:
        if CASES[name].environment and device.type != "cpu":
            continue
        kinds = ("plain", "ours", "compiled") if CASES[name].compile else ("plain", "ours")
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind, found in runs.items():
                found.append(child(name, kind, options.seconds, device))
        peak = peaks["float32"] if CASES[name].environment else max(peaks.values())
        results[name] = summarise(runs, peak)
        print(row(name, results[name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(facts | {"cases": results}, indent=1) + "\n")
    return 0


def child(case: str, kind: str, seconds: float, device: torch.device) -> dict[str, Any]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--one", case, kind, "--seconds", str(seconds)]
    command += ["--device", device.type]
    environment = os.environ | CASES[case].environment
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def measure(name: str, kind: str, seconds: float, device: torch.device) -> dict[str, Any]:
    """Images/s of every window, FLOP an image and peak memory of this process."""
    case, data = CASES[name], load_dataset("dsprites")
    torch.manual_seed(0)
    model = build(case).to(device)
    if case.encode:
        speeds = time_encoding(model, data, kind, seconds, device)
    elif kind == "plain":
        step = plain_infogan(model) if isinstance(model, InfoGAN) else plain_vae(model)
        batches = plain_batches(data, case.batch_size)

        def window() -> None:
            for _ in range(case.window):
                step(next(batches).to(device))

        speeds = windows(window, case.window * case.batch_size, seconds, device)
    else:
        model, data = as_trained(model, device), data.to(device)
        if kind == "compiled":
            model.compile(dynamic=False)
        speeds = time_loop(model, data, case, seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device) / 2**20
    flops = 0
    if kind == "ours" and not case.encode:
        flops = count_flops(as_trained(build(case), device), data, case)
    return {"speeds": speeds, "flops": flops, "mb": round(peak)}


def build(case: Case) -> torch.nn.Module:
    """The model of a configuration."""
    path = Path(__file__).resolve().parents[1] / "config" / f"{case.config}.yaml"
    schema = config.make_schema(DATASETS, MODELS, OBJECTIVES)
    values = config.validate(schema, config.read_yaml(path))
    return build_model((1, 64, 64), values["model"], values["objective"])


def as_trained(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The model as train.py and evaluate.py run it."""
    keep_freed_memory()
    model = model.to(device, memory_format=torch.channels_last)
    model.dtype = choose_precision("auto", device)
    return model


def windows(
    work: Callable[[], object], images: int, seconds: float, device: torch.device
) -> list[float]:
    """Images/s of doing the same work on so many images again and again; the first warms up."""
    speeds, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(speeds) < 3:
        start = time.perf_counter()
        work()
        wait_for(device)
        speeds.append(images / (time.perf_counter() - start))
    return speeds[1:]


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TimeIsUp(Exception):
    """Raised within the loop to end it."""


def time_loop(model: torch.nn.Module, data: ImageData, case: Case, seconds: float) -> list[float]:
    """Images/s between rows of the log of the real loop; the first is a warm-up."""
    calls, end = 0, 0.0

    def batch(index: torch.Tensor) -> torch.Tensor:
        nonlocal calls, end
        calls += 1
        if calls == case.window:  # compiled, if at all, by now
            end = time.perf_counter() + seconds
        if time.perf_counter() > end and calls > 4 * case.window:
            raise TimeIsUp
        return data.batch(index, model.dtype)

    with tempfile.TemporaryDirectory() as name:
        folder, never = Path(name), 10**9
        log, batches = Log(folder, 0), Batches(len(data), case.batch_size, seed=0)
        every = {"log_every": case.window, "draw_every": never, "save_every": never}
        settings = {"start": {"step": 0}, "steps": never, "seed": 0, "draw": print} | every
        with contextlib.suppress(TimeIsUp):
            train(model, batch, batches, folder / "checkpoint.pt", log, **settings)
        rows = (folder / "speed.csv").read_text().splitlines()[2:]
        return [float(row.split(",")[1]) for row in rows]


def time_encoding(
    model: torch.nn.Module, data: ImageData, kind: str, seconds: float, device: torch.device
) -> list[float]:
    """Images/s of encoding ENCODED images, again and again."""
    some = replace(data, images=PackedImages(data.images.packed[:ENCODED]), grid=None)
    if kind == "plain":
        encode_all = plain_encoding(some, device)
    else:
        model, some = as_trained(model, device), some.to(device)
        encode_all = functools.partial(encode, data=some, label="images")
    model.eval()
    return windows(lambda: encode_all(model), len(some), seconds, device)


def count_flops(model: torch.nn.Module, data: ImageData, case: Case) -> float:
    """Floating-point operations of training, an image: the mean over COUNTED steps.

    Those of torch's own layers, which the model is left with: the counter knows no others.
    """
    plain_layers(model)
    x = data.batch(torch.arange(case.batch_size), model.dtype)
    with FlopCounterMode(display=False) as counter:
        for step in range(COUNTED):
            model.train_step(x, step)
    return counter.get_total_flops() / (COUNTED * case.batch_size)


def matmul_peak(dtype: torch.dtype, device: torch.device, repeats: int = 10) -> float:
    """FLOP/s of the fastest of some matrix products (n x n)."""
    n = 2048 if device.type == "cpu" else 8192
    a, best = torch.randn(n, n, dtype=dtype, device=device), 0.0
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        a @ a
        wait_for(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def summarise(runs: dict[str, list[dict[str, Any]]], peak: float) -> dict[str, Any]:
    """Median and spread (of the medians of the rounds) of each kind, ratios, FLOP/s, memory."""
    found: dict[str, Any] = {}
    for kind, rounds in runs.items():
        speeds = [median(r["speeds"]) for r in rounds]
        found[kind] = {
            "images_per_s": median(speeds),
            "spread": max(speeds) - min(speeds),
            "mb": max(r["mb"] for r in rounds),
        }
    for kind in found:
        found[kind]["ratio"] = found[kind]["images_per_s"] / found["plain"]["images_per_s"]
    if runs["ours"][0]["flops"]:
        found["flops"] = runs["ours"][0]["flops"] * found["ours"]["images_per_s"]
        found["share_of_peak"] = found["flops"] / peak
    return found


def row(name: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    text = f"{name:<22}"
    for kind in ("plain", "ours", "compiled"):
        if kind not in found:
            text += f"{'-':>16}{'-':>7}"
            continue
        one = found[kind]
        speed = f"{one['images_per_s']:,.0f} ± {one['spread'] / 2:,.0f}"
        text += f"{speed:>16}" + (f"{one['ratio']:>7.1f}" if kind != "plain" else "")
    if "flops" in found:
        text += f"{found['flops'] / 1e9:>9,.0f}{found['share_of_peak']:>9.0%}"
    else:
        text += f"{'-':>9}{'-':>9}"
    return text + f"{found['ours']['mb']:>7,}"


if __name__ == "__main__":
    sys.exit(main())
