"""The factors behind a data set: image i shows the i-th combination of their values, row-major."""

from dataclasses import dataclass
from math import prod

import numpy as np

MAX_LENGTH = 2**63  # of what Python and NumPy count


@dataclass(frozen=True)
class FactorGrid:
    """Names and sizes of K factors, the slowest first; every combination occurs exactly once.

    Raises ValueError if names and sizes do not pair up, a name repeats or a size is below 1.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < len(set(self.names)) == len(self.names) == len(self.sizes):
            raise ValueError(f"factors need different names and a size each, got {self}")
        if min(self.sizes) < 1 or prod(self.sizes) >= MAX_LENGTH:
            raise ValueError(f"factor sizes must be 1 or more and not too large, got {self.sizes}")

    def __len__(self) -> int:
        """Number of combinations."""
        return prod(self.sizes)

    def factors(self, index: np.ndarray) -> np.ndarray:
        """Factor values of rows of the grid: (n,) ints -> (n, K) int64.

        Raises ValueError if a row is outside 0 ... len - 1.
        """
        index = np.asarray(index, np.int64)
        _check_range("index", index, len(self))
        return np.stack(np.unravel_index(index, self.sizes), axis=-1)

    def index(self, factors: np.ndarray) -> np.ndarray:
        """Rows of the grid with these factor values: (n, K) ints -> (n,) int64.

        Raises ValueError if there are not K columns, or a value is outside its factor.
        """
        factors = np.asarray(factors, np.int64)
        if factors.ndim < 1 or factors.shape[-1] != len(self.sizes):
            raise ValueError(f"factors must have columns {self.names}, got shape {factors.shape}")
        for k, name in enumerate(self.names):
            _check_range(f"factor '{name}'", factors[..., k], self.sizes[k])
        return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(factors, -1, 0)), self.sizes))

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n combinations uniformly, with replacement: (n, K) int64."""
        return rng.integers(self.sizes, size=(n, len(self.sizes)))


def _check_range(name: str, values: np.ndarray, size: int) -> None:
    wrong = values[(values < 0) | (values >= size)]
    if wrong.size:
        raise ValueError(f"{name} is {wrong[0]}, allowed are 0 ... {size - 1}")
