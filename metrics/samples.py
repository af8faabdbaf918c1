"""What a metric takes, codes with their factors, and what it returns."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

LEVEL_REPEATS = 10  # a float that occurs this often on average is a level, not a measurement
MANY_CLASSES = 100  # discrete factors seldom have more values


@dataclass(frozen=True)
class Result:
    """A score with its protocol and the numbers behind it."""

    score: float
    protocol: str  # the publications that the metric follows
    factors: tuple[str, ...] = ()  # (K,) names of the factors that the metric used
    matrix: np.ndarray | None = None  # (D, K) numbers behind the score
    matrix_kind: str = ""  # the unit of the matrix
    per_factor: np.ndarray | None = None  # (K,) numbers that the score is made of
    per_code: np.ndarray | None = None  # (D,) numbers that the score is made of

    def to_json(self) -> dict:
        """The fields that are set, as plain JSON values."""
        entry = {"score": float(self.score), "protocol": self.protocol}
        if self.per_factor is not None:
            entry["per_factor"] = dict(zip(self.factors, map(float, self.per_factor), strict=True))
        if self.per_code is not None:
            entry["per_code"] = {f"code {i}": float(x) for i, x in enumerate(self.per_code)}
        if self.matrix is not None:
            kind, names = self.matrix_kind, list(self.factors)
            entry["matrix"] = {"kind": kind, "factors": names, "values": self.matrix.tolist()}
        return entry


@dataclass(frozen=True)
class Samples:
    """Codes and factors of the same rows, checked by `as_samples`."""

    codes: object  # (N, D) float64, or an object with `.shape` whose `[rows]` gives (n, D)
    factors: np.ndarray  # (N, K) values of the factors that vary; K may be 0
    names: tuple[str, ...]  # (K,) of the factors
    continuous: np.ndarray  # (K,) bool: a factor is a measurement, not discrete
    sizes: tuple[int, ...] | None  # (K,) if the rows are a full row-major grid
    logvar: np.ndarray | None  # (N, D) of the posterior whose means are `codes`; -inf is certain
    notes: tuple[str, ...] = ()  # what was decided about the factors

    def __len__(self) -> int:
        return self.codes.shape[0]

    @property
    def num_codes(self) -> int:
        return self.codes.shape[1]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Codes of `rows` (...), float64 (..., D)."""
        codes = np.asarray(self.codes[rows.reshape(-1)], dtype=np.float64)
        return codes.reshape(*rows.shape, self.num_codes)

    def discrete(self) -> "Samples":
        """The samples with their discrete factors only."""
        columns = np.flatnonzero(~self.continuous)
        need(columns.size, "no factor is discrete (--bins NAME=20 makes a continuous one discrete)")
        names, factors = tuple(self.names[k] for k in columns), self.factors[:, columns]
        continuous = self.continuous[columns]
        return replace(self, factors=factors.astype(np.int64), names=names, continuous=continuous)


def as_samples(
    codes,
    factors=None,
    names: Sequence[str] | None = None,
    *,
    continuous: Iterable[str] = (),
    bins: Mapping[str, int] | None = None,
    without: Iterable[str] = (),
    logvar=None,
) -> Samples:
    """Check codes and factors and bring them into one form.

    A factor of whole numbers is discrete. A factor of floats is continuous, unless its values occur
    ten times each on average. A factor with a single value is left out.

    Args:
        codes: (N, D) array, or an object with `.shape` (N, D) whose `[rows]` gives (n, D).
        factors: (N, K) numbers, or an object with `.names` and `.factors(index)`.
        names: (K,) names of the columns of an array; "factor 0", ... by default.
        continuous: names of factors of whole numbers that are measurements.
        bins: factor name -> number of bins of equal width, which make it discrete.
        logvar: (N, D) log-variances of the posterior; whole numbers as last codes may have none.
    """
    if isinstance(codes, np.ndarray):
        codes = as_array(codes, "codes")
    if logvar is not None:
        rest = codes[:, np.size(logvar) // len(codes) :]
        categories = 0 if (rest % 1).any() else rest.shape[1]
        logvar = as_array(logvar, "logvar", len(codes), codes.shape[1] - categories)
        logvar = np.pad(logvar, ((0, 0), (0, categories)), constant_values=-np.inf)
    if factors is None:
        need(not (continuous or bins or without), "there are no factors to bin or to leave out")
        none = np.empty((codes.shape[0], 0))
        return Samples(codes, none, (), none[0].astype(bool), None, logvar)
    if hasattr(factors, "factors"):
        names, factors = factors.names, factors.factors(np.arange(len(factors)))
    factors = as_array(factors, "factors", rows=codes.shape[0])
    names = names or [f"factor {k}" for k in range(factors.shape[1])]
    is_named = len(names) == len(set(names)) == factors.shape[1]
    need(is_named, f"{factors.shape[1]} factors need as many different names, not {names}")
    bins = bins or {}
    for name in [*continuous, *bins, *without]:
        need(name in names, f"no factor is called {name!r}; allowed are {', '.join(names)}")

    # Decide for each factor whether it counts and whether it is continuous, and note what is done.
    columns, measured, notes = {}, [], []
    for name, column in zip(names, factors.T, strict=True):
        if name in without or np.ptp(column) == 0:
            notes.append(f"{name} is left out")
            continue
        if name in bins:
            column = to_bins(column, bins[name])
        classes, labels = np.unique(column, return_inverse=True)
        is_whole = not (classes % 1).any()
        has_levels = len(classes) * LEVEL_REPEATS <= len(column)
        columns[name] = column if is_whole else labels
        if name in continuous or not (is_whole or has_levels):
            columns[name] = column
            measured.append(name)
            notes.append(f"{name} is continuous (--bins {name}=20 makes it discrete)")
        elif len(classes) > MANY_CLASSES:
            notes.append(f"{name} is treated as {len(classes)} classes (see --continuous, --bins)")
    need(columns, f"no factor varies: {', '.join(names)}")
    factors = np.stack(list(columns.values()), axis=1)
    sizes = None if measured else _grid_sizes(factors)
    is_measured = np.array([name in measured for name in columns])
    return Samples(codes, factors, tuple(columns), is_measured, sizes, logvar, tuple(notes))


def as_array(values, name: str, rows: int | None = None, columns: int | None = None) -> np.ndarray:
    """Check finite numbers (rows, columns), called `name` in messages; returns them as float64."""
    array = np.asarray(values)
    need(array.dtype.kind in "fiub", f"{name} has dtype {array.dtype}; numbers are allowed")
    is_matrix = array.ndim == 2 and array.size > 0
    has_shape = is_matrix and array.shape == (rows or len(array), columns or array.shape[1])
    need(has_shape, f"{name} has shape {array.shape}, not ({rows or 'N'}, {columns or 'columns'})")
    need(np.isfinite(array).all(), f"{name} has NaN or infinity")
    return array.astype(np.float64)


def need(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def to_bins(column: np.ndarray, num_bins: int) -> np.ndarray:
    """Bins of equal width, with the edges of `np.histogram`, of the values (n,) of a column."""
    edges = np.linspace(column.min(), column.max(), num_bins + 1)[:-1]
    return np.searchsorted(edges, column, side="right") - 1


def _grid_sizes(factors: np.ndarray) -> tuple[int, ...] | None:
    """Sizes if the rows are a full row-major grid of 0 ... size - 1, else None."""
    sizes = tuple(int(largest) + 1 for largest in factors.max(axis=0))
    if factors.min() != 0 or math.prod(sizes) != len(factors):
        return None
    grid = np.stack(np.unravel_index(np.arange(len(factors)), sizes), axis=1)
    return sizes if np.array_equal(factors, grid) else None
