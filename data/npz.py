"""A user's own pictures in one npz file."""

import lzma
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from data.grid import FactorGrid
from data.images import ImageData

KEYS = ("images", "sizes", "names")
# what numpy raises for bytes that it did not write, by where it stumbles: nothing that is plain
# arrays, a damaged or encrypted archive, another compression, a header that claims too much
NPZ_ERRORS = (
    *(ValueError, EOFError, AttributeError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


def load_npz(cache_dir: Path, *, path: str) -> ImageData:
    """Load the pictures in the npz file at path; nothing is kept in cache_dir.

    The file holds `images` (N, H, W) or (N, H, W, C) uint8 with C = 1 or 3, where 255 means 1.0,
    and optionally `sizes` (K,) and `names` (K,) of the factors whose full grid the images show in
    row-major order. Raises FileNotFoundError without the file, ValueError for any other content.
    """
    path = Path(os.path.expanduser(path))  # an unknown ~user stays as it is
    if not path.is_file():
        raise FileNotFoundError(f"dataset.path is {path}: the data set 'npz' needs a file there")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not an npz file")
        with np.load(path, allow_pickle=False) as arrays:
            unknown = [key for key in arrays.files if key not in KEYS]
            if unknown and "images" in arrays:
                raise ValueError(
                    f"it holds {', '.join(unknown)}; allowed are {', '.join(KEYS)} (of a full "
                    "grid; codes with factors of their own are scored by evaluate.py --codes)"
                )
            images, sizes, names = (arrays.get(key) for key in KEYS)
        return ImageData("npz", _images(images), _grid(sizes, names))
    except NPZ_ERRORS as error:
        raise ValueError(f"dataset.path: {path} cannot be used: {error}") from error


def _images(images: np.ndarray | None) -> torch.Tensor:
    if images is None:
        raise ValueError("it holds no array 'images'")
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {images.shape}, allowed is uint8 (N, H, W) or "
            "(N, H, W, C) with C = 1 or 3"
        )
    if images.size == 0 or images.max() <= 1:
        raise ValueError("images hold nothing above 1, but 255 means 1.0: scale them to 0 ... 255")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()  # (N, C, H, W)


def _grid(sizes: np.ndarray | None, names: np.ndarray | None) -> FactorGrid | None:
    if sizes is None and names is None:
        return None
    if sizes is None or sizes.ndim != 1 or sizes.dtype.kind not in "iu":
        raise ValueError("sizes must be a row of integers, one for each name")
    if names is None:
        names = np.array([f"factor{k}" for k in range(len(sizes))])
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise ValueError(f"names has shape {names.shape}; a text a factor is allowed")
    return FactorGrid(tuple(names.astype(str).tolist()), tuple(map(int, sizes)))
