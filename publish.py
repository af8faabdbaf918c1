"""Copy what a finished run shows into res/: python publish.py --run runs/twoD/seed0 --name vae4

Or the weights, logs and facts of all finished runs of a study into res/<study>/runs, where sweep.py
and report.py find them: python publish.py --study config/studies/twoD.yaml
"""

import argparse
import re
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

import train
from config.study import NAME, Study, load_study, member_folder, members
from training import load_checkpoint, save_checkpoint
from training.checkpoint import OF_OBJECTIVE, write_atomically

DEFAULT_OUT = Path("res/2dshapes")
LARGE = 8e6  # bytes of weights from which a published checkpoint holds them in half precision

PICTURES = {
    "curves.png": "{name}_loss.png",
    "fixed.png": "{name}_fix.png",
    "codes.png": "{name}.png",
    "random.png": "{name}_random.png",
    "recon.png": "{name}_recon.png",
    "traversal.gif": "{name}.gif",
    "training.gif": "{name}_training.gif",
}
RECORDS = {
    "config.yaml": "{name}.yaml",
    "run.json": "{name}_run.json",
    "log.csv": "{name}_log.csv",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="the folder of a finished run")
    what.add_argument("--study", type=Path, help="a YAML file such as config/studies/twoD.yaml")
    parser.add_argument("--name", help="what the published files of --run are called")
    parser.add_argument("--out", type=Path, help=f"of --run; default: {DEFAULT_OUT}")
    parser.add_argument("--no-pictures", action="store_true", help="of --run: weights, log, facts")
    parser.add_argument(
        "--runs", type=Path, help="of --study; default: runs/studies/<name of the study>"
    )
    options = parser.parse_args(arguments)
    of_run = {"--name": options.name, "--out": options.out, "--no-pictures": options.no_pictures}
    try:
        others = of_run if options.study else {"--runs": options.runs}
        if given := [option for option, value in others.items() if value]:
            chosen = "--study" if options.study else "--run"
            raise ValueError(f"{given[0]} is not allowed with {chosen}")
        if options.study:
            study = load_study(options.study)
            publish_study(study, options.runs or study.home)
        else:
            if not re.fullmatch(NAME, options.name or ""):
                raise ValueError(
                    f"--name: {options.name!r} is not allowed; what the published files of --run "
                    "are called: letters, digits, _, . and -"
                )
            pictures = not options.no_pictures
            publish(options.run, options.name, options.out or DEFAULT_OUT, pictures=pictures)
    except (ValueError, OSError) as error:
        print(f"publish.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("publish.py: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def publish(run: Path, name: str, out: Path, pictures: bool = True) -> None:
    """Copy configuration, log, weights (no optimisers) and pictures of a finished run.

    Weights of more than LARGE bytes are rounded to float16 (scores move in the third decimal).
    Raises ValueError for an unfinished run.
    """
    state = load_checkpoint(run)
    files = RECORDS | (PICTURES if pictures else {})
    if lacks := lacking(state, run, files):
        raise ValueError(f"{run} is not finished: {lacks}")
    out.mkdir(parents=True, exist_ok=True)
    for source, target in files.items():
        _copy(run / source, out / target.format(name=name))
    large = sum(tensor.nbytes for tensor in slim(state, half=False)["model"].values()) > LARGE
    save_checkpoint(out / f"{name}.pt", slim(state, half=large))
    print(f"published {run} as {out / name}")


def publish_study(study: Study, runs: Path) -> None:
    """Copy each finished run of a study that is not there yet, its weights in half precision.

    For sweep.py it is then complete, and report.py scores it where runs is empty. What was
    published of another configuration, such as fewer steps, is replaced.
    """
    for member in members(study):
        run, target = member_folder(member, runs), member_folder(member, study.published)
        values = train.resolve(member.config, list(member.overrides))
        if train.holds(target, values) or not (run / "checkpoint.pt").exists():
            continue
        state = load_checkpoint(run)
        if train.configuration(state, run) != values:
            print(f"{run} has not the configuration of the study, left out")
            continue
        if lacks := lacking(state, run, RECORDS):
            print(f"{run} is not finished, left out: {lacks}")
            continue
        target.mkdir(parents=True, exist_ok=True)
        save_checkpoint(target / "checkpoint.pt", slim(state, half=True))
        for source in sorted(RECORDS, key="config.yaml".__eq__):  # last: what makes it count
            _copy(run / source, target / source)
        print(f"published {run} as {target}")
    there = len(list(study.published.glob("*/seed*/checkpoint.pt")))
    print(f"{there} runs are in {study.published}")


def lacking(state: dict[str, Any], run: Path, files: Iterable[str]) -> str:
    """What a run lacks to be published, "" if nothing."""
    missing = [file for file in files if not (run / file).exists()]
    if missing:
        return f"it lacks {', '.join(missing)}"
    steps = state["config"]["train"]["steps"]
    if state["step"] < steps:
        return f"step {state['step']} of {steps}"
    return "it trains on for more steps" if train.is_extended(state, run) else ""


def slim(state: dict[str, Any], half: bool) -> dict[str, Any]:
    """A checkpoint without what only training needs: optimisers, an objective's own state."""
    kept = {key: state[key] for key in ("config", "image_shape", "step")}
    weights = {k: w for k, w in state["model"].items() if not k.startswith(OF_OBJECTIVE)}
    return kept | {"model": _halved(weights) if half else weights}


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all: a full disk leaves what was published before."""
    write_atomically(target, lambda file: shutil.copyfile(source, file))


def _halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in half precision; biases and the statistics of batch norm stay as they are."""
    return {k: w.half() if w.is_floating_point() and w.ndim > 1 else w for k, w in weights.items()}


if __name__ == "__main__":
    sys.exit(main())
