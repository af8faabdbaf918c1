"""Data sets by name: each is an ImageData, one uint8 tensor of images and their factor grid."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.dsprites import load_dsprites
from data.grid import FactorGrid
from data.images import ImageData, PackedImages
from data.npz import NPZ_ERRORS, load_npz

__all__ = ["DATASETS", "NPZ_ERRORS", "FactorGrid", "ImageData", "PackedImages", "load_dataset"]

CACHE_DIR = Path(__file__).resolve().parents[1] / ".cache"

# Called with cache_dir and the settings of the YAML section `dataset`; the keys are its `name`s.
DATASETS: dict[str, Callable[..., ImageData]] = {
    "dsprites": load_dsprites,
    "npz": load_npz,
}


def load_dataset(name: str, *, cache_dir: str | Path | None = None, **settings: Any) -> ImageData:
    """Load a data set by its YAML name.

    settings: the keyword arguments of its loader in DATASETS; cache_dir: where prepared data are
    kept, by default `.cache` in the repository. Raises ValueError for a choice that does not exist
    or a file of the wrong content, OSError if a file can neither be read nor be had.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset.name is '{name}', allowed are {', '.join(DATASETS)}")
    return DATASETS[name](Path(cache_dir or CACHE_DIR).expanduser(), **settings)
