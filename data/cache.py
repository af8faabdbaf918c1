"""Arrays that take long to make are saved in .npy files and mapped into memory, as one copy."""

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from filelock import FileLock

import files


def checksum(array: np.ndarray) -> str:
    """Return the BLAKE2b (128 bit) of a C-ordered array's bytes; 377 MB take about 0.5 s."""
    return hashlib.blake2b(array, digest_size=16).hexdigest()


def cached(path: Path, make: Callable[[], np.ndarray], expected: str | None = None) -> np.ndarray:
    """Return the array in a cache file; make it if that is missing, damaged or not `expected`."""
    array = _read(path, expected)
    if array is not None:
        return array
    array = make()

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # np.save adds .npy to the name of a path
            np.save(file, array)

    try:
        files.write(path, save)
    except OSError as error:  # a read-only checkout, or a full disk
        print(f"no cache: {error}", file=sys.stderr)
    return array


def cached_parts(
    path: Path, shape: tuple[int, ...], parts: Callable[[], Iterable[tuple]]
) -> np.ndarray:
    """Return the uint8 array in a cache file; if the file is missing, `parts` fills it.

    They yield rows and what these hold, so that the whole array is never in memory.
    """

    def save(temporary: Path) -> None:
        np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        for rows, part in parts():  # mapped anew, else the pages written before stay in memory
            np.lib.format.open_memmap(temporary, "r+")[rows] = part

    array = _read(path)
    if array is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name("parts.lock")):  # other processes wait for the first one
            if not path.exists() or _read(path) is None:
                files.write(path, save)
        array = _read(path)
    return array


def _read(path: Path, expected: str | None = None) -> np.ndarray | None:
    """Map a cache file; None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        array = np.lib.format.open_memmap(path, mode="c")  # writing changes the copy in memory
        if expected is not None and checksum(array) != expected:
            raise ValueError("its checksum is wrong")
        return array
    except (OSError, ValueError) as error:
        print(f"the cache {path} is made again: {error}", file=sys.stderr)
        return None
