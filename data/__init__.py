"""Data sets by name: each is an ImageData, one uint8 tensor of images and their factors."""
# ruff: noqa: F401

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.batches import Batches, mix
from data.dsprites import load_dsprites
from data.images import FactorGrid, FactorTable, ImageData, PackedImages
from data.npz import load_npz

CACHE_DIR = Path(__file__).resolve().parents[1] / ".cache"

# Functions of (cache_dir, *, settings); the settings are the keys of the YAML section `dataset`.
DATASETS: dict[str, Callable[..., ImageData]] = {"dsprites": load_dsprites, "npz": load_npz}


def load_dataset(name: str, *, cache_dir: str | Path | None = None, **settings: Any) -> ImageData:
    """Load a data set by its name in DATASETS; `settings` are the arguments of its function."""
    return DATASETS[name](Path(cache_dir or CACHE_DIR), **settings)
