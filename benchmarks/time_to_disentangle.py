"""How soon a configuration disentangles: python benchmarks/time_to_disentangle.py --config FILE

Trains it as train.py does, one seed after the other, and scores a part of the images every so many
steps: FactorVAE score and MIG, by the protocols of evaluate.py. Says from which image on both stay
above their marks to the end of the run.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # this folder has a `metrics` of its own
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pydantic_core import PydanticCustomError
from torch import nn

import train
from config.study import parse_seeds
from data import ImageData, load_dataset
from evaluate import encode
from metrics import score_all
from models.fast import keep_freed_memory
from training import Batches, Log, NonFiniteError, choose_device
from training import train as train_model
from training.logs import append_row, need_columns


class Row(NamedTuple):
    """Scores of a run on its way; minutes are of training, without the scoring."""

    config: str
    seed: int
    step: int
    images: int
    minutes: float
    factor_vae: float
    mig: float


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a YAML file in config/")
    parser.add_argument("--seeds", default="0-2", help="default: 0-2")
    parser.add_argument("--every", type=int, default=1000, metavar="STEPS", help="default: 1000")
    parser.add_argument("--images", type=int, default=40_000, metavar="N", help="that are scored")
    parser.add_argument("--factor-vae", type=float, default=0.8, help="mark; default: .8")
    parser.add_argument("--mig", type=float, default=0.35, help="mark; default: .35")
    parser.add_argument("--csv", type=Path, help="a file to which all rows are added")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train.py")
    options = parser.parse_intermixed_args(arguments)
    for key, least in (("every", 1), ("images", 10_000)):
        if (given := getattr(options, key)) < least:
            parser.error(f"--{key}: {given} is not allowed; allowed: {least} or more")
    try:
        seeds = parse_seeds(options.seeds)
    except PydanticCustomError as allowed:
        parser.error(f"--seeds: {options.seeds} is not allowed; allowed: {allowed}")
    marks = options.factor_vae, options.mig
    for key, mark in (("factor-vae", marks[0]), ("mig", marks[1])):
        if not 0 <= mark <= 1:
            parser.error(f"--{key}: {mark:g} is not allowed; allowed: 0 to 1")
    if any(override.startswith("seed=") for override in options.overrides):
        parser.error("seed: not allowed here; give the seeds by --seeds")
    if options.csv and not options.csv.parent.is_dir():
        parser.error(f"--csv: there is no folder {options.csv.parent}")
    try:
        if options.csv:
            need_columns(options.csv, Row._fields)
        all_values = [
            train.resolve(options.config, [*options.overrides, f"seed={s}"]) for s in seeds
        ]
        for values in all_values:
            rows = follow(values, options.every, options.images, options.csv)
            print(sentence(rows, *marks), flush=True)
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"time_to_disentangle.py: {error}", file=sys.stderr)
        return train.EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def follow(values: dict[str, Any], every: int, images: int, out: Path | None) -> list[Row]:
    """Train the run of a resolved configuration and score it every so many steps.

    Raises ValueError for a data set without factors, KeyboardInterrupt where it was stopped.
    """
    settings, seed = values["train"], values["seed"]
    device = choose_device(settings["device"])
    keep_freed_memory()
    data = load_dataset(**values["dataset"]).to(device)
    if data.grid is None:
        raise ValueError(f"dataset.name: '{data.name}' has no factors to score")
    model = train.make_model(values, data, device)
    rows, began, paused = [], time.perf_counter(), 0.0

    def score(step: int) -> None:
        nonlocal paused
        start = time.perf_counter()
        found = scores_of(model, data, images)
        minutes = (start - began - paused) / 60
        rows.append(Row(values["name"], seed, step, step * settings["batch_size"], minutes, *found))
        if out:
            numbers = {"minutes": f"{minutes:.2f}"}
            numbers |= dict(zip(("factor_vae", "mig"), map("{:.4f}".format, found), strict=True))
            append_row(out, rows[-1]._asdict() | numbers)
        paused += time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        stopped_by = train_model(
            model,
            lambda index: data.batch(index, model.dtype),
            Batches(len(data), settings["batch_size"], seed),
            Path(folder) / "checkpoint.pt",
            Log(Path(folder), 0),
            start={"step": 0},
            steps=settings["steps"],
            seed=seed,
            log_every=settings["log_every"],
            draw_every=every,
            save_every=settings["steps"],
            draw=score,
        )
    if stopped_by:
        raise KeyboardInterrupt
    return rows


def scores_of(model: nn.Module, data: ImageData, images: int) -> tuple[float, float]:
    """FactorVAE score and MIG of the codes of so many images, the same ones every time."""
    index = data.random_index(images, seed=1).numpy()
    codes, _ = encode(model, data, "on the way", index)
    found = score_all(codes, data.grid.factors(index), metrics=("factor_vae", "mig"))
    return found["factor_vae"]["score"], found["mig"]["score"]


def holding(rows: list[Row], factor_vae: float, mig: float) -> Row | None:
    """The first row from which on both scores stay at their marks or above.

    None if the last is below one of them.
    """
    first = None
    for row in reversed(rows):
        if row.factor_vae < factor_vae or row.mig < mig:
            break
        first = row
    return first


def sentence(rows: list[Row], factor_vae: float, mig: float) -> str:
    """What `holding` found, and how the run ended."""
    last, first = rows[-1], holding(rows, factor_vae, mig)
    marks = f"FactorVAE score {factor_vae:g} and MIG {mig:g}"
    found = f"{marks} do not hold at the end"
    if first:
        found = f"{marks} hold from {first.images:,} images on, {first.minutes:.1f} minutes"
    end = f"{last.factor_vae:.3f} and {last.mig:.3f} after {last.images:,}"
    return f"{last.config}, seed {last.seed}: {found} ({end})"


if __name__ == "__main__":
    sys.exit(main())
