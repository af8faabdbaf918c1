"""Train one run: python train.py --config config/twoD.yaml [key.subkey=value ...]

The same command again goes on where the run stopped, or says that it is complete. Several
processes train one run with torchrun --nproc_per_node=2 train.py --config config/twoD.yaml
"""

import argparse
import functools
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import config
from data import DATASETS, ImageData, load_dataset
from figures.run import Frames, draw_run, draw_training
from models import MODELS, build_model, needs_objective, try_model
from models.fast import keep_freed_memory
from models.objectives import OBJECTIVES
from training import (
    Batches,
    CompileError,
    Log,
    NonFiniteError,
    PeerError,
    RunFolder,
    choose_device,
    choose_precision,
    hardware,
    is_out_of_memory,
    load_checkpoint,
    need_compiler,
    need_optimizers,
    need_tensorboard,
    process_group,
    provenance,
    rank_label,
    read_record,
    restore,
    synchronise,
    train,
    uncompiled,
    wait_for_all,
)

SCHEMA = config.make_schema(DATASETS, MODELS, OBJECTIVES)
EXIT_BAD_INPUT = 2
LAST_PICTURE = "training.gif"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Keys:\n" + config.describe(SCHEMA),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="a YAML file, such as config/twoD.yaml")
    parser.add_argument("--runs", default="runs", type=Path, help="folder of all runs")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="objective.beta=8 seed=3")
    options = parser.parse_intermixed_args(arguments)
    try:
        values = resolve(options.config, options.overrides)
        if options.print_config:
            print(config.to_yaml(values), end="")
            return 0
        return run(values, options.runs)
    except BrokenPipeError:  # what reads our output (| tee) has ended: nobody is left to be told
        for stream in (sys.stdout, sys.stderr):  # else flushing them at exit fails again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:  # bad input, or a disk that is full
        _report(error)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        _report("stopped; the same command goes on from the last checkpoint")
        return 128 + signal.SIGINT
    except (NonFiniteError, PeerError) as error:
        _report(error)
        return 1
    except CompileError as error:
        reason = " ".join(str(error).splitlines()[:2])
        kept = "the last checkpoint is intact, if there is one"
        _report(f"torch.compile failed: {reason}; {kept}. train.compile=false does without it.")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        _report(f"out of memory ({reason}): a smaller train.batch_size or model needs less")
        return 1


def _report(error: object) -> None:
    print(f"train.py: {rank_label()}{error}", file=sys.stderr, flush=True)


def resolve(path: str, overrides: list[str]) -> dict[str, Any]:
    """The complete configuration of a run as plain values. Raises config.ConfigError."""
    values = config.apply_overrides(config.read_yaml(path), overrides)
    values = config.validate(SCHEMA, values)
    name, objective = values["model"]["name"], values["objective"]
    if needs_objective(name) and objective is None:
        raise config.ConfigError(
            f"key 'objective' is missing: the model '{name}' needs one of {', '.join(OBJECTIVES)}"
        )
    if not needs_objective(name) and objective is not None:
        raise config.ConfigError(f"the model '{name}' has its own loss: take out 'objective'")
    try:  # what a constructor refuses is refused before a folder is made
        try_model(values["model"], objective)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    return values


def run_path(values: dict[str, Any], runs: Path) -> Path:
    """The folder of the run that `values` describe."""
    return runs / values["name"] / f"seed{values['seed']}"


def saved_state(path: Path) -> dict[str, Any] | None:
    """The checkpoint in a run folder, None where there is none. Raises CheckpointError."""
    return load_checkpoint(path) if (path / "checkpoint.pt").exists() else None


def is_complete(state: dict[str, Any] | None, path: Path, steps: int) -> bool:
    """Whether the run in `path`, saved as `state`, needs neither training nor pictures.

    Published weights, which have no optimisers, have been through both.
    """
    if state is None or state["step"] < steps:
        return False
    return "optimizers" not in state or (path / LAST_PICTURE).exists()


def as_resolved(path: Path) -> str:
    """The text of a run's config.yaml with the defaults of keys that it was written without.

    Where the file is lost, what the checkpoint beside it knows.
    """
    values = config.read_yaml(path) if path.exists() else load_checkpoint(path.parent)["config"]
    with config.named(path):
        return config.to_yaml(config.validate(SCHEMA, values))


def holds(path: Path, values: dict[str, Any]) -> bool:
    """Whether the run folder `path` has a checkpoint and is of this very configuration."""
    files = [path / name for name in ("checkpoint.pt", "config.yaml")]
    if not all(file.exists() for file in files):
        return False
    return as_resolved(files[1]) == config.to_yaml(values)


def configuration(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the run in `path`, saved as `state`, was trained with; younger keys get defaults."""
    with config.named(path):
        return config.validate(SCHEMA, state["config"])


def is_extended(state: dict[str, Any], path: Path) -> bool:
    """Whether the run in `path`, saved as `state`, has taken over more steps than that knows of.

    So it is from the start of a longer training to the first checkpoint that it saves.
    """
    return (path / "config.yaml").exists() and not holds(path, configuration(state, path))


def run(values: dict[str, Any], runs: Path) -> int:
    """Train the run that `values` describe until it is complete or interrupted; its exit code."""
    device = choose_device(values["train"]["device"])
    path = run_path(values, runs)
    state = saved_state(path)
    if state is None or state["step"] < values["train"]["steps"]:
        if values["train"]["compile"]:
            need_compiler(device)
        if values["train"]["tensorboard"]:
            need_tensorboard()
        if state:
            need_optimizers(state, path)  # before the folder takes over the longer configuration
    with process_group(device) as (rank, processes):
        if rank > 0:
            wait_for_all()  # rank 0 has made or refused the folder
            return run_in(path, None, values, device, rank, processes)
        with RunFolder(path, config.to_yaml(values), as_resolved) as folder:
            wait_for_all()
            try:
                return run_in(path, folder, values, device, rank, processes)
            except BrokenPipeError:
                raise
            except OSError as error:
                if not (path / "checkpoint.pt").exists():
                    raise
                kept = "the last checkpoint is intact, the same command goes on from it"
                raise OSError(f"{error} ({path}: {kept})") from error


def run_in(
    path: Path,
    folder: RunFolder | None,
    values: dict[str, Any],
    device: torch.device,
    rank: int,
    processes: int,
) -> int:
    """`run` in a folder that is this run's own; rank 0 has it open and alone writes to it."""
    settings, seed = values["train"], values["seed"]
    checkpoint = path / "checkpoint.pt"
    state = saved_state(path)
    if is_complete(state, path, settings["steps"]):
        if folder:
            print(f"This run is complete ({state['step']:,} steps). {_next(path)}")
        return 0

    keep_freed_memory()
    data = load_dataset(**values["dataset"]).to(device)
    if state and (state["images"], tuple(state["image_shape"])) != (len(data), data.image_shape):
        raise ValueError(
            f"{checkpoint} was trained on {state['images']:,} images of {state['image_shape']}, "
            f"but the data set now has {len(data):,} of {list(data.image_shape)}"
        )
    if state and state.get("data", data.fingerprint) != data.fingerprint:
        raise ValueError(
            f"{checkpoint} was trained on other images or factors than the data set has"
        )
    model = make_model(values, data, device)
    if state:
        restore(model, state, checkpoint, optimizers=True)
    synchronise(model)
    start = state or {"step": 0, "image_shape": list(data.image_shape), "images": len(data)}
    start |= {"config": values, "data": data.fingerprint}

    go = functools.partial(
        train,
        model,
        functools.partial(data.batch, dtype=model.dtype),
        Batches(len(data), settings["batch_size"], seed, rank, processes),
        checkpoint,
        start=start,
        steps=settings["steps"],
        seed=seed,
        **{key: settings[key] for key in ("log_every", "draw_every", "save_every")},
    )
    if folder is None:
        stopped_by = go(log=None, draw=None)
    else:
        if state:
            print(f"Going on from step {state['step']:,} in {path}", file=sys.stderr)
            warn_of_precision(path / "run.json", model.dtype)
        folder.take()
        (path / LAST_PICTURE).unlink(missing_ok=True)  # of a shorter run: it marks completeness
        steps = start["step"], settings["log_every"], settings["steps"]
        log = Log(path, *steps, settings["tensorboard"])
        steps = start["step"], settings["draw_every"], settings["steps"]
        frames = Frames(path / "frames", *steps, model)
        facts = {"from_step": start["step"], "precision": str(model.dtype).removeprefix("torch.")}
        facts |= {"processes": processes, "hardware": hardware(device)}
        folder.describe(start=provenance() | facts, anew=state is None)
        stopped_by = go(log=log, draw=frames.add)
        log.close()
    if stopped_by:
        if folder:
            name = signal.Signals(stopped_by).name
            text = f"Stopped by {name}, saved in {path}. The same command goes on from here."
            print(text, flush=True)
        wait_for_all()  # the first process to end makes torchrun end the others
        return 128 + stopped_by
    if folder is None:
        return 0

    title = f"{values['name']}, seed {seed}"
    random_images = data.batch(data.random_index(2048, seed=0))
    with uncompiled():
        model.eval()
        if not frames.all():  # lost since
            frames.add(settings["steps"])
        draw_run(model, path, data.reference_images(), random_images, title=title)
    images_seen = settings["steps"] * settings["batch_size"]
    seconds = log.seconds()
    timed = {} if seconds is None else {"train_seconds": round(seconds, 1)}
    folder.describe(images_seen=images_seen, **timed)
    draw_training(path, frames.all(), title=title)  # last: it marks completeness
    print(f"Done: {path}." + (f" {_next(path)}" if data.grid else ""))
    return 0


def warn_of_precision(record: Path, dtype: torch.dtype) -> None:
    """A line on stderr where a run goes on in another precision than it was last started in."""
    starts = read_record(record)["starts"] if record.exists() else []
    before, now = (starts or [{}])[-1].get("precision"), str(dtype).removeprefix("torch.")
    if before not in (None, now):
        text = f"it goes on in {now}, up to here it was trained in {before} (train.precision)"
        print(f"warning: {text}", file=sys.stderr)


def make_model(values: dict[str, Any], data: ImageData, device: torch.device) -> nn.Module:
    """The model of a run as it starts: weights of its seed, on the device, in its precision."""
    torch.manual_seed(values["seed"])  # of the initial weights
    model = build_model(data.image_shape, values["model"], values["objective"], len(data))
    model = model.to(device, memory_format=torch.channels_last)
    model.dtype = choose_precision(values["train"]["precision"], device)
    if values["train"]["compile"]:
        kind = type(model)
        if kind.compile is nn.Module.compile and kind.forward is nn.Module.forward:
            name = values["model"]["name"]
            raise ValueError(
                f"train.compile: the model '{name}' has no forward or compile of its own"
            )
        model.compile(dynamic=False)  # every step has the same shapes
    return model


def _next(path: Path) -> str:
    python = Path(sys.executable)
    here = python.is_relative_to(Path.cwd())
    name = python.relative_to(Path.cwd()) if here else "python"
    return f"Next: {name} evaluate.py --checkpoint {shlex.quote(str(path))}"


if __name__ == "__main__":
    sys.exit(main())
