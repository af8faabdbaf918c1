"""Arrays that take long to make are saved in .npy files and mapped into memory, as one copy."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import files


def checksum(array: np.ndarray) -> str:
    """Return the BLAKE2b (128 bit) of a C-ordered array's bytes; 377 MB take about 0.5 s."""
    return hashlib.blake2b(array, digest_size=16).hexdigest()


def cached(path: Path, make: Callable[[], np.ndarray], expected: str | None = None) -> np.ndarray:
    """Return the array in a cache file; make and save it if the file is missing or damaged.

    Args:
        expected: the checksum of the array; None: no checksum is verified.
    """
    if path.exists():
        try:
            array = np.lib.format.open_memmap(path, mode="c")  # writing changes the copy in memory
            if expected is not None and checksum(array) != expected:
                raise ValueError("its checksum is wrong")
            return array
        except (OSError, ValueError) as error:
            print(f"the cache {path} is made again: {error}", file=sys.stderr)
    array = make()

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:  # np.save adds .npy to the name of a path
            np.save(file, array)

    try:
        files.write(path, save)
    except OSError as error:  # a read-only checkout, or a full disk
        print(f"no cache: {error}", file=sys.stderr)
    return array
