"""Train one run: python train.py --config config/twoD.yaml [key.subkey=value ...]

The same command again goes on where the run stopped, or says that it is complete.
"""

import argparse
import functools
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import config
from data import DATASETS, load_dataset
from figures.run import Frames, draw_run, draw_training
from models import MODELS, build_model, needs_objective
from models.fast import keep_freed_memory
from models.objectives import OBJECTIVES
from training import (
    Batches,
    Log,
    NonFiniteError,
    RunFolder,
    choose_device,
    choose_precision,
    hardware,
    load_checkpoint,
    provenance,
    restore,
    train,
)

SCHEMA = config.make_schema(DATASETS, MODELS, OBJECTIVES)
EXIT_BAD_INPUT = 2
LAST_PICTURE = "training.gif"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
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
    except (ValueError, OSError) as error:  # bad input, or a disk that is full
        print(f"train.py: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(
            "train.py: stopped; the same command goes on from the last checkpoint", file=sys.stderr
        )
        return 128 + signal.SIGINT
    except NonFiniteError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1


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
    return values


def run(values: dict[str, Any], runs: Path) -> int:
    """Train the run that `values` describe until it is complete or interrupted; its exit code."""
    device = choose_device(values["train"]["device"])
    path = runs / values["name"] / f"seed{values['seed']}"
    with RunFolder(path, config.to_yaml(values)) as folder:
        try:
            return run_in(folder, values, device)
        except OSError as error:
            kept = "the last checkpoint is intact, the same command goes on from it"
            raise OSError(f"{error} ({path}: {kept})") from error


def run_in(folder: RunFolder, values: dict[str, Any], device: torch.device) -> int:
    """`run` in a folder that is this process's own."""
    settings, seed = values["train"], values["seed"]
    checkpoint = folder / "checkpoint.pt"
    state = load_checkpoint(checkpoint) if checkpoint.exists() else None
    if state and state["step"] >= settings["steps"] and (folder / LAST_PICTURE).exists():
        print(f"This run is complete ({state['step']:,} steps). {_next(folder)}")
        return 0

    keep_freed_memory()
    data = load_dataset(**values["dataset"]).to(device)
    if state and (state["images"], tuple(state["image_shape"])) != (len(data), data.image_shape):
        raise ValueError(
            f"{checkpoint} was trained on {state['images']:,} images of {state['image_shape']}, "
            f"but the data set now has {len(data):,} of {list(data.image_shape)}"
        )
    torch.manual_seed(seed)  # of the initial weights
    model = build_model(data.image_shape, values["model"], values["objective"])
    model = model.to(device, memory_format=torch.channels_last)
    model.dtype = choose_precision(settings["precision"], device)
    if settings["compile"]:
        model.compile()
    if state:
        restore(model, state, checkpoint, optimizers=True)
        print(f"Going on from step {state['step']:,} in {folder.path}", file=sys.stderr)
    start = state or {"step": 0, "image_shape": list(data.image_shape), "images": len(data)}
    start["config"] = values

    (folder / LAST_PICTURE).unlink(missing_ok=True)  # of a shorter run: it marks completeness
    log = Log(
        folder.path,
        start["step"],
        settings["log_every"],
        settings["steps"],
        settings["tensorboard"],
    )
    frames = Frames(
        folder / "frames", start["step"], settings["draw_every"], settings["steps"], model
    )
    facts = {"from_step": start["step"], "precision": str(model.dtype).removeprefix("torch.")}
    folder.describe(start=provenance() | facts | {"hardware": hardware(device)})
    stopped_by = train(
        model,
        functools.partial(data.batch, dtype=model.dtype),
        Batches(len(data), settings["batch_size"], seed),
        checkpoint,
        log,
        start=start,
        steps=settings["steps"],
        seed=seed,
        **{key: settings[key] for key in ("log_every", "draw_every", "save_every")},
        draw=frames.add,
    )
    log.close()
    if stopped_by:
        name = signal.Signals(stopped_by).name
        print(f"Stopped by {name}, saved in {folder.path}. The same command goes on from here.")
        return 128 + stopped_by
    model.eval()
    title = f"{values['name']}, seed {seed}"
    random_images = data.batch(data.random_index(2048, seed=0))
    draw_run(model, folder.path, data.reference_images(), random_images, title=title)
    draw_training(folder.path, frames.all(), title=title)
    images_seen = settings["steps"] * settings["batch_size"]
    folder.describe(images_seen=images_seen, train_seconds=round(log.seconds(), 1))
    print(f"Done: {folder.path}." + (f" {_next(folder)}" if data.grid else ""))
    return 0


def _next(folder: RunFolder) -> str:
    python = Path(sys.executable)
    here = python.is_relative_to(Path.cwd())
    name = python.relative_to(Path.cwd()) if here else "python"
    return f"Next: {name} evaluate.py --checkpoint {folder.path}"


if __name__ == "__main__":
    sys.exit(main())
