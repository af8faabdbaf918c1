"""Data sets by name: each is an ImageData, one uint8 tensor of images and their factors."""
# ruff: noqa: F401

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.batches import Batches, mix
from data.dsprites import load_colour, load_dsprites, load_noisy, load_scream
from data.folder import load_celeba, load_folder
from data.images import FactorGrid, FactorTable, ImageData, PackedImages
from data.npz import load_npz
from data.official import load_cars3d, load_mpi3d, load_shapes3d, load_smallnorb
from data.selection import restrict
from data.squares import load_xyobject, load_xysquares

CACHE_DIR = Path(__file__).resolve().parents[1] / ".cache"

# Functions of (cache_dir, *, settings); the settings are the keys of the YAML section `dataset`.
DATASETS: dict[str, Callable[..., ImageData]] = {
    "dsprites": load_dsprites,
    "colour_dsprites": load_colour,
    "noisy_dsprites": load_noisy,
    "scream_dsprites": load_scream,
    "xysquares": load_xysquares,
    "xyobject": load_xyobject,
    "npz": load_npz,
    "shapes3d": load_shapes3d,
    "cars3d": load_cars3d,
    "smallnorb": load_smallnorb,
    "mpi3d": load_mpi3d,
    "celeba": load_celeba,
    "folder": load_folder,
}


def load_dataset(name: str, *, cache_dir: str | Path | None = None, **settings: Any) -> ImageData:
    """Load a data set by its name; `settings` are arguments of its function and of `restrict`."""
    restrictions = {key: settings.pop(key, None) for key in ("keep", "correlate")}
    return restrict(DATASETS[name](Path(cache_dir or CACHE_DIR), **settings), **restrictions)
