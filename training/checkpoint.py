"""Checkpoints: tensors and plain values in one file, replaced whole or not at all."""

import hashlib
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

OF_OBJECTIVE = "objective."  # weights of a VAE's objective: none of its codes depends on them


class CheckpointError(ValueError):
    """The file is not there, is torn, or holds something else."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: old or new, never half.

    A link stays one: what it leads to is written. Raises OSError (a full disk) with the old file
    intact and the temporary one removed.
    """
    path = Path(path).resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values). Raises OSError, the previous file being intact."""

    def write(temporary: Path) -> None:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # how torch's writer reports a failed write
            raise OSError(f"cannot write {path} (is the disk full?): {error}") from error

    write_atomically(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint (a file, or a run folder that has one), on the CPU.

    Raises CheckpointError with one sentence where it cannot be read.
    """
    with _opened(path) as file:
        return _state(file)


def load_hashed(path: Path) -> tuple[dict[str, Any], str]:
    """As load_checkpoint, with the SHA-256 of the very bytes that were read.

    A training may replace the file meanwhile: what is open stays the old one.
    """
    with _opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        return _state(file), digest


def checkpoint_file(path: Path) -> Path:
    """The file of a checkpoint or a run folder. Raises CheckpointError where there is none."""
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    return path


def _opened(path: Path) -> BinaryIO:
    return open(checkpoint_file(path), "rb")


def _state(file: BinaryIO) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except (
        # what torch raises for bytes that it did not write, by where it stumbles
        *(RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError),
        *(pickle.UnpicklingError, zipfile.BadZipFile),
    ) as error:
        raise CheckpointError(
            f"{file.name} is damaged or not a checkpoint of this project"
        ) from error
    if not isinstance(state, dict) or not {"config", "image_shape", "model", "step"} <= set(state):
        raise CheckpointError(f"{file.name} is not a checkpoint of this project")
    return state


def need_optimizers(state: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError for published weights, which lack what a training goes on with."""
    if "optimizers" not in state:
        raise CheckpointError(
            f"{path} holds weights only, of step {state['step']:,}: a training cannot go on from it"
        )


def restore(model: nn.Module, state: dict[str, Any], path: Path, *, optimizers: bool) -> None:
    """Load a checkpoint's weights (and optimisers) into a model of its configuration.

    Without the optimisers, what an objective keeps for training (a discriminator) may lack too.
    Raises CheckpointError where they do not fit, or where it was published without optimisers.
    """
    if optimizers:
        need_optimizers(state, path)
    try:
        wrong = model.load_state_dict(state["model"], strict=False)
        lacks = [k for k in wrong.missing_keys if optimizers or not k.startswith(OF_OBJECTIVE)]
        if lacks or wrong.unexpected_keys:
            raise LookupError(", ".join([*lacks, *wrong.unexpected_keys]))
        for name, optimizer in model.optimizers.items() if optimizers else ():
            optimizer.load_state_dict(state["optimizers"][name])
    except (RuntimeError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"{path} does not fit the networks of this version: {error}".splitlines()[0]
        ) from error
