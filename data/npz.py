"""A user's own pictures in one npz file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from data.images import FactorGrid, FactorTable, ImageData

KEYS = ("images", "sizes", "factors", "names")


def load_npz(cache_dir: Path, *, path: str) -> ImageData:
    """The pictures in an npz file, with their factors if it holds them.

    The file holds `images` (N, H, W) or (N, H, W, C) uint8 with C = 1 or 3, where 255 means 1.0.
    It may hold `sizes` (K,), whose full grid the images show in row-major order, or `factors`
    (N, K), the integers or floats behind each image; and `names` (K,) of these factors.

    Args:
        path: the npz file, relative to the current folder.
    """
    arrays = read_npz(path, "dataset.path")
    if "images" not in arrays or not set(arrays) <= set(KEYS):
        raise ValueError(f"{path} holds {', '.join(arrays)}; allowed: {', '.join(KEYS)}")
    images = arrays["images"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        allowed = "uint8 (N, H, W) or (N, H, W, C) with C = 1 or 3"
        raise ValueError(f"{path}: images are {images.dtype} {images.shape}; allowed: {allowed}")
    if images.max(initial=0) <= 1:
        raise ValueError(f"{path}: images hold nothing above 1, but 255 means 1.0; scale them")
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()  # (N, C, H, W)
    return ImageData("npz", images, factors_in(arrays))


def read_npz(path: str | Path, option: str) -> dict[str, np.ndarray]:
    """The arrays in the npz file that an option names. ValueError if it is none or damaged."""
    file = Path(path).expanduser()
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{option}: {file} does not exist or is no npz file")
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{option}: {file} is damaged") from error


def factors_in(arrays: dict[str, np.ndarray]) -> FactorGrid | FactorTable | None:
    """The factors that `sizes`, or `factors`, and `names` describe; None without them."""
    sizes, factors, names = (arrays.get(key) for key in KEYS[1:])
    if sizes is None and factors is None and names is None:
        return None
    if (sizes is None) == (factors is None):
        raise ValueError("factors are described by 'sizes' or by 'factors', one of the two")
    values, ndim, kinds = (factors, 2, "iufb") if sizes is None else (sizes, 1, "iu")
    if values.ndim != ndim or values.dtype.kind not in kinds or not np.isfinite(values).all():
        allowed = "sizes (K,) of integers, or factors (N, K) of finite numbers"
        raise ValueError(f"factors are {values.dtype} {values.shape}; allowed: {allowed}")
    default = [f"factor{k}" for k in range(values.shape[-1])]
    names = tuple(default if names is None else names.astype(str).tolist())
    if len(names) != len(default) or len(set(names)) != len(default):
        raise ValueError(f"names are {names}; allowed: {len(default)} different names")
    if factors is None:
        return FactorGrid(names, tuple(sizes.tolist()))
    dtype = np.float64 if factors.dtype.kind == "f" else np.int64
    return FactorTable(names, np.ascontiguousarray(factors, dtype))
