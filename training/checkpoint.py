"""Checkpoints: tensors and plain values in one file, written whole or not at all."""

import hashlib
import io
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import files
from training.log import Window

REQUIRED = {"config": dict, "image_shape": (list, tuple), "model": dict, "step": int}
OBJECTIVE = "objective."  # prefix of a VAE objective's own weights; no code depends on them


class NonFiniteError(RuntimeError):
    """A loss or a weight is NaN or infinite."""


def refuse_non_finite(step: int, terms: dict[str, float], model: nn.Module | None = None) -> None:
    """Raise NonFiniteError if a term, or a weight of the model, is NaN or infinite."""
    wrong = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
    if model is not None and not wrong:
        weights = [t for t in model.state_dict().values() if t.is_floating_point()]
        norms = torch.stack([tensor.float().norm() for tensor in weights])
        wrong = [] if norms.isfinite().all() else ["a weight"]
    if wrong:
        raise NonFiniteError(
            f"not finite at step {step:,}: {', '.join(wrong)}; "
            "the last checkpoint is intact; a lower learning rate may help"
        )


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values). Raises OSError; the previous file is intact."""

    def save(temporary: Path) -> None:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk like this
            raise OSError(None, f"is the disk full? {str(error).splitlines()[0]}") from error

    files.write(path, save)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    """The state in a checkpoint file, or in that of a run folder, on the CPU, and its SHA-256.

    ValueError if there is no such file, its bytes are damaged, or it holds something else.
    """
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no checkpoint {file}")
    content = file.read_bytes()  # once: a training may replace the file meanwhile
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load checks no checksum
            if archive.testzip():
                raise zipfile.BadZipFile
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        for key, kind in REQUIRED.items():
            if not isinstance(state[key], kind):
                raise TypeError(key)
    except Exception as error:  # foreign or damaged bytes fail in a dozen ways
        raise ValueError(f"{file} is damaged or not a checkpoint of this project") from error
    return state, hashlib.sha256(content).hexdigest()


def state_of(model: nn.Module, window: Window) -> dict[str, Any]:
    """What `restore` loads."""
    optimizers = {name: optimizer.state_dict() for name, optimizer in model.optimizers.items()}
    for group in (group for state in optimizers.values() for group in state["param_groups"]):
        group["lr"] = float(group["lr"])  # a tensor in a CUDA graph
    return {"model": model.state_dict(), "optimizers": optimizers, "window": window.state()}


def restore(
    model: nn.Module, state: dict[str, Any], path: Path, window: Window | None = None
) -> None:
    """Load the weights of a checkpoint; for training also its optimisers and its window.

    Published weights have no optimisers and lack what an objective needs for training only.
    ValueError if the weights do not fit the model, or the optimisers are missing.
    """
    if window and "optimizers" not in state:
        raise ValueError(f"{path} holds weights only; training cannot resume from it")
    try:
        keys = model.load_state_dict(state["model"], strict=False)
        missing = [key for key in keys.missing_keys if window or not key.startswith(OBJECTIVE)]
        if missing or keys.unexpected_keys:
            raise KeyError(", ".join([*missing, *keys.unexpected_keys]))
        if window:
            window.load(state["window"])
            for name, optimizer in model.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} does not fit the networks of this version: {reason}") from error
