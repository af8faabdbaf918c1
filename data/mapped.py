"""Sets of files that may be larger than memory: read once, in parts, into a mapped cache file."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

from data.cache import cached_parts
from data.images import FactorGrid, FactorTable, ImageData

Size = Literal[32, 64, 128]  # pixels, those of the networks
Parts = Iterator[tuple[np.ndarray | slice, np.ndarray]]  # rows (n,) and images (n, H, W, C) uint8
PART = 2048  # images in memory at a time


def find_files(path: str | Path, suffixes: tuple[str, ...], advice: str) -> list[str]:
    """Return the file at `path`, or the sorted files with these suffixes below that folder."""
    root = os.path.normpath(os.path.expanduser(path))
    if os.path.isfile(root):
        return [root]
    files = [f"{folder}/{name}" for folder, _, names in os.walk(root) for name in names]
    files = [file for file in files if file.lower().endswith(suffixes)]
    if not files:
        raise ValueError(f"dataset.path: there is nothing to read at {path}; {advice}")
    return sorted(files)


def load_mapped(
    name: str,
    cache_dir: Path,
    path: str | Path,
    files: list[str],
    parts: Callable[[], Parts],
    grid: FactorGrid | FactorTable | None,
    *,
    size: int,
    channels: int = 3,
    nuisance: tuple[str, ...] = (),
) -> ImageData:
    """Return a data set that `parts` reads from files, mapped from the cache.

    It has an image for each row of the grid, and without a grid one for each file.
    The name of the cache file depends on the path, and on names, lengths and times of the files (of
    some, if there are over 20,000), so changed files are read again; the old cache is then removed.
    """
    stats = [os.stat(file) for file in files[:: 1 + len(files) // 20_000]]  # takes 0.2 s at most
    state = _hash((files, [(stat.st_size, stat.st_mtime_ns) for stat in stats]))
    prefix = f"{name}_{channels}x{size}_{_hash(os.path.realpath(os.path.expanduser(path)))}_"
    cache = cache_dir / f"{prefix}{state}.npy"
    shape = (len(files if grid is None else grid), channels, size, size)
    images = cached_parts(cache, shape, lambda: _resized_parts(path, parts, shape, name))
    for old in set(cache_dir.glob(f"{prefix}*.npy")) - {cache}:
        old.unlink(missing_ok=True)
    return ImageData(name, torch.from_numpy(images), grid, is_sampled=True, nuisance=nuisance)


@contextmanager
def foreign(path: str | Path):
    """Turn the errors of reading another or a damaged file into one sentence."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # the readers fail in many ways on bytes of other programs
        message = f"dataset.path: {path} is damaged or another file ({error})"
        raise ValueError(message.replace("\n", " ")) from error


def slices(n: int) -> Iterator[slice]:
    """Return the slices of consecutive parts of n images."""
    return (slice(start, min(start + PART, n)) for start in range(0, n, PART))


def _resized_parts(path: str | Path, parts: Callable[[], Parts], shape: tuple, name: str) -> Parts:
    """The parts as (n, C, H, W) of the size of the set; every image must come."""
    missing = np.ones(shape[0], bool)
    with foreign(path), tqdm(total=len(missing), desc=f"read {name}", delay=1) as bar:
        for rows, images in parts():
            if images.dtype != np.uint8 or images.shape[3:] != shape[1:2]:
                raise ValueError(f"images are {images.dtype} {images.shape}")
            missing[rows] = False
            x = torch.from_numpy(images).permute(0, 3, 1, 2)
            if x.shape[2:] != shape[2:]:
                x = interpolate(x, shape[2:], mode="bilinear", antialias=True)
            yield rows, x.numpy()
            bar.update(len(images))
        if missing.any():
            raise ValueError(f"{missing.sum():,} of {len(missing):,} images are missing")


def _hash(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=6).hexdigest()
