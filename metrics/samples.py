"""Codes with their factors, checked once; how the metrics draw from them.

A full row-major grid is drawn from by index, uniformly and with replacement as in the 2019 study;
plain samples are drawn from without, and interventions on them match values. Of dSprites a draw has
hardly any row twice; of a small grid it has many, and what learns from neighbours or is tested on
other rows would find its own copies: there such metrics draw without replacement, too.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import Ge

# Types of settings, which evaluate.py checks before it works; the metrics check them again.
AtLeastOne = Annotated[int, Ge(1)]
AtLeastTwo = Annotated[int, Ge(2)]

LARGEST = 1e100  # of codes and factors: squares and sums of them stay finite
LARGEST_LOGVAR = 500  # either way: beyond it a variance is no longer a float
FEW_COPIES = 40  # a grid of so many times the draw: at most one row in 40 of it comes twice
LEVEL_REPEATS = 10  # times that a value of a factor of floats occurs on average to be a level


@dataclass(frozen=True)
class Samples:
    """Checked codes and factors; made by `as_samples`.

    codes: (N, D). names: (K,) factor names. sizes: (K,) of a full row-major grid, or None.
    factors: (N, K) values of plain samples, or None for a grid. continuous: (K,) bools.
    left_out: names of factors that have a single value and are therefore not scored.
    """

    codes: object
    names: tuple[str, ...]
    sizes: tuple[int, ...] | None
    factors: np.ndarray | None
    continuous: tuple[bool, ...]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.codes.shape[0]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Codes of `rows`, float64 (..., D)."""
        taken = np.asarray(self.codes[rows.reshape(-1)], dtype=np.float64)
        if not isinstance(self.codes, np.ndarray):  # made on demand, so not checked before
            need(bool(np.isfinite(taken).all()), "codes has NaN or infinity")
        return taken.reshape(*rows.shape, -1)

    def values(self, rows: np.ndarray) -> np.ndarray:
        """Factor values of `rows` (n,), (n, K)."""
        if self.factors is not None:
            return self.factors[rows]
        return np.stack(np.unravel_index(rows, self.sizes), axis=1)

    def split(self, rng: np.random.Generator, share: float) -> list["Samples"]:
        """Two random parts of plain samples without a common row, the first with this share."""
        parts = np.split(rng.permutation(len(self)), [round(share * len(self))])
        return [replace(self, codes=self.codes[p], factors=self.factors[p]) for p in parts]


def as_samples(codes, factors=None, names=None) -> Samples:
    """Check codes and factors and bring them into one form; a `Samples` passes through.

    codes: (N, D) array, torch tensor, or an object with `.shape` (N, D) whose `[rows]` gives
    (n, D) (codes too large to hold, such as raw pixels). factors: (N, K) integers or floats, or a
    grid with `.sizes` and `.names` whose i-th combination, row-major, belongs to row i. A factor of
    floats is continuous unless its values are integers or occur LEVEL_REPEATS times each on
    average; such levels count as 0, 1, ... in their order. Values 0, 1, ... that form a full
    row-major grid are treated as one. names: (K,) for factors without `.names`, "factor 0" ... by
    default. Factors with a single value are left out. Raises ValueError for wrong shapes, NaN,
    infinity, values beyond LARGEST, names that are not unique and when no factor varies.
    """
    if isinstance(codes, Samples):
        return codes
    codes = as_codes(codes)
    sizes = getattr(factors, "sizes", None)
    if sizes is not None:
        sizes, names = tuple(int(s) for s in sizes), tuple(factors.names)
        if math.prod(sizes) != codes.shape[0]:
            grid = " x ".join(map(str, sizes))
            raise ValueError(
                f"codes has {codes.shape[0]} rows, but the factor grid {grid} has "
                f"{math.prod(sizes)} combinations; row i must belong to combination i"
            )
        varies, continuous, factors = [s > 1 for s in sizes], [False] * len(sizes), None
    else:
        factors = _as_factors(factors, codes.shape[0])
        names = tuple(names or (f"factor {k}" for k in range(factors.shape[1])))
        need(
            len(names) == factors.shape[1],
            f"{len(names)} names for {factors.shape[1]} factors: {names}",
        )
        factors, continuous = _with_levels(factors)
        varies = (factors != factors[:1]).any(axis=0).tolist()
        sizes = _grid_sizes(factors)
    need(len(set(names)) == len(names), f"names of factors must differ: {', '.join(names)}")
    if not any(varies):
        raise ValueError(f"no factor varies: {', '.join(names)} have one value each")
    keep = [k for k, v in enumerate(varies) if v]
    return Samples(
        codes=codes,
        names=tuple(names[k] for k in keep),
        sizes=None if sizes is None else tuple(sizes[k] for k in keep),
        factors=None if sizes is not None else np.ascontiguousarray(factors[:, keep]),
        continuous=tuple(continuous[k] for k in keep),
        left_out=tuple(name for name, v in zip(names, varies, strict=True) if not v),
    )


def as_codes(codes, name: str = "codes"):
    """Check an (N, D) array of real numbers called `name` in messages; lazy objects pass."""
    if hasattr(codes, "detach"):  # a torch tensor, without importing torch
        codes = codes.detach().cpu()
        codes = codes.float() if "bfloat16" in str(codes.dtype) else codes
    if hasattr(codes, "__array__") or not hasattr(codes, "shape"):
        codes = np.asarray(codes)
        need(codes.dtype.kind in "fiub", f"{name} has dtype {codes.dtype}; numbers are allowed")
        if codes.dtype.itemsize > 8:
            with np.errstate(over="ignore"):  # what is too large becomes infinite: named below
                codes = codes.astype(np.float64)
    if len(codes.shape) != 2 or 0 in codes.shape:
        raise ValueError(f"{name} has shape {tuple(codes.shape)}; (N samples, D codes) is allowed")
    if isinstance(codes, np.ndarray) and codes.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(codes).all(axis=1))
        if bad.size:
            raise ValueError(
                f"{name} has NaN or infinity in {bad.size} rows, first in row {bad[0]}"
            )
        low, high = codes.min(axis=0), codes.max(axis=0)
        extent = np.where(high > low, high.astype(np.float64) - low, 1)
        largest = max(abs(float(low.min())), abs(float(high.max())))
        need(
            largest <= LARGEST, f"{name} has the value {largest:g}; at most {LARGEST:g} is allowed"
        )
        need(
            extent.min() >= 1 / LARGEST,
            f"code {extent.argmin()} of {name} varies by {extent.min():g} only; rescale it",
        )
    return codes


def as_logvar(logvar, codes, name: str = "logvar"):
    """Check the (N, D) log-variances of the posterior whose means are `codes`."""
    logvar = as_codes(logvar, name)
    largest = np.abs(logvar).max()
    need(
        logvar.shape == codes.shape and largest <= LARGEST_LOGVAR,
        f"{name} has shape {logvar.shape} and values up to {largest:g}; {tuple(codes.shape)} like "
        f"its codes and at most {LARGEST_LOGVAR} either way is allowed",
    )
    return logvar


def _as_factors(factors, rows: int) -> np.ndarray:
    if hasattr(factors, "detach"):
        factors = factors.detach().cpu()
        factors = factors.float() if "bfloat16" in str(factors.dtype) else factors
    factors = np.asarray(factors)
    if factors.dtype.kind not in "fiub":
        raise ValueError(
            f"factors has dtype {factors.dtype}; numbers (N, K) or a grid with .sizes and .names "
            "are allowed"
        )
    if factors.ndim != 2 or factors.shape[0] != rows or factors.shape[1] == 0:
        raise ValueError(f"factors has shape {factors.shape}; ({rows}, K) like codes is allowed")
    if factors.dtype.kind == "f" and not np.isfinite(factors).all():
        raise ValueError("factors has NaN or infinity; finite values are allowed")
    limit = LARGEST if factors.dtype.kind == "f" else np.iinfo(np.int64).max
    largest = max(abs(float(factors.min())), float(factors.max()))
    need(largest <= limit, f"factors has the value {largest:g}; at most {limit:g} is allowed")
    return factors.astype(np.float64 if factors.dtype.kind == "f" else np.int64)


def _with_levels(factors: np.ndarray) -> tuple[np.ndarray, list[bool]]:
    """Factors (N, K) with the levels of floats as 0, 1, ..., and which columns are continuous."""
    if factors.dtype.kind != "f":
        return factors, [False] * factors.shape[1]
    columns, continuous = [], []
    for column in factors.T:
        values, levels = np.unique(column, return_inverse=True)
        whole, few = not (values % 1).any(), len(values) * LEVEL_REPEATS <= len(column)
        columns.append(levels if few and not whole else column)
        continuous.append(not (whole or few))
    factors = np.stack(columns, axis=1)
    return factors if any(continuous) else factors.astype(np.int64), continuous


def _grid_sizes(factors: np.ndarray) -> tuple[int, ...] | None:
    """Sizes if the rows are a full row-major grid of 0 ... size - 1, else None."""
    sizes = tuple(int(m) + 1 for m in factors.max(axis=0))
    if factors.min() != 0 or math.prod(sizes) != len(factors):
        return None
    digits = np.unravel_index(np.arange(len(factors)), sizes)
    same = all(np.array_equal(factors[:, k], digits[k]) for k in range(len(sizes)))
    return sizes if same else None


def draw(
    samples: Samples, rng: np.random.Generator, num: int, setting: str, *, copies: bool = True
) -> np.ndarray:
    """Rows (num,): uniform with replacement on a grid, without on plain samples.

    copies: whether a row that comes twice does no harm; else a grid of less than FEW_COPIES times
    `num` rows is drawn from without replacement. Raises ValueError if that is asked of fewer than
    `num` rows; the message names `setting`.
    """
    need_at_least(1, **{setting: num})
    if samples.sizes is not None and (copies or len(samples) >= FEW_COPIES * num):
        return rng.integers(len(samples), size=num)
    if num > len(samples):
        raise ValueError(
            f"{setting} = {num}, but there are only {len(samples)} samples; "
            f"lower {setting} or give more samples"
        )
    return rng.choice(len(samples), size=num, replace=False)


def sample(samples: Samples, rng, num: int, setting: str = "num_samples", *, copies: bool = True):
    """Codes (num, D) and factor values (num, K) of a `draw`.

    Raises ValueError if a factor has a single value in it.
    """
    rows = draw(samples, rng, num, setting, copies=copies)
    x, y = samples.take(rows), samples.values(rows)
    _check_varying(samples, y)
    return x, y


def train_test(samples: Samples, rng, num_train: int, num_test: int):
    """A training and a test `sample`: (x, y), (x, y); no row of a small grid is in both."""
    need_at_least(1, num_train=num_train, num_test=num_test)
    x, y = sample(samples, rng, num_train + num_test, "num_train + num_test", copies=False)
    _check_varying(samples, y[:num_train])
    return (x[:num_train], y[:num_train]), (x[num_train:], y[num_train:])


def _check_varying(samples: Samples, y: np.ndarray) -> None:
    for name, values in zip(samples.names, y.T, strict=True):
        need(np.ptp(values) > 0, f"{name!r} has a single value in the {len(y)} samples drawn")


def partners(
    samples: Samples, rng: np.random.Generator, rows: np.ndarray, factor: int, at_least: int
) -> np.ndarray:
    """Random rows that agree with `rows` in one factor, all other factors free; same shape.

    On plain samples the partner is another row with the same value, so other factors keep
    whatever dependence the samples have. Raises ValueError if a value occurs in fewer than
    `at_least` rows.
    """
    if samples.sizes is not None:
        size, stride = samples.sizes[factor], math.prod(samples.sizes[factor + 1 :])
        other = rng.integers(len(samples), size=rows.shape)
        return other + (rows // stride % size - other // stride % size) * stride
    values, group, counts = np.unique(
        samples.factors[:, factor], return_inverse=True, return_counts=True
    )
    rare = counts.argmin()
    if counts[rare] < at_least:
        raise ValueError(
            f"{samples.names[factor]!r} has the value {values[rare]:g} in {counts[rare]} of "
            f"{len(samples)} samples; {at_least} that share it are needed to vary the others"
        )
    order = np.argsort(group, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    start, count = (np.cumsum(counts) - counts)[group[rows]], counts[group[rows]]
    step = 1 + rng.integers(count - 1)  # never the row itself
    return order[start + (place[rows] - start + step) % count]


def need_discrete(samples: Samples, metric: str, instead: str) -> None:
    """Raise ValueError if a factor is continuous; the message says what to do `instead`."""
    named = [n for n, c in zip(samples.names, samples.continuous, strict=True) if c]
    if named:
        raise ValueError(f"{metric} needs discrete factors, {named[0]!r} is continuous; {instead}")


def need(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def need_at_least(smallest: int, **settings: int) -> None:
    """Raise ValueError unless every setting is at least `smallest`."""
    for name, value in settings.items():
        need(value >= smallest, f"{name} = {value}; {smallest} or more are allowed")


def need_often(name: str, values: np.ndarray, at_least: int) -> None:
    """Raise ValueError unless every value (n,) of the factor `name` occurs in so many samples."""
    found, counts = np.unique(values, return_counts=True)
    need(
        counts.min() >= at_least,
        f"{name!r} has the value {found[counts.argmin()]:g} in {counts.min()} of the {len(values)} "
        f"samples drawn; {at_least} or more are needed",
    )


def to_bins(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Integer bins (n, D) of each column of `values` (n, D): equal widths from its min to its max.

    The edges are those of `np.histogram`; a constant column is one bin. Raises ValueError for
    fewer than two bins.
    """
    need_at_least(2, num_bins=num_bins)
    bins = np.empty(values.shape, dtype=np.int64)
    for d, column in enumerate(values.T):
        edges = np.linspace(column.min(), column.max(), num_bins + 1)[:-1]
        bins[:, d] = np.searchsorted(edges, column, side="right") - 1
    return bins


def to_labels(samples: Samples, values: np.ndarray, num_bins: int) -> np.ndarray:
    """Factor values (n, K) as labels 0 ... m - 1 (n, K); continuous factors are binned."""
    labels = np.empty(values.shape, dtype=np.int64)
    for k, column in enumerate(values.T):
        if samples.continuous[k]:
            column = to_bins(column[:, None], num_bins)[:, 0]
        labels[:, k] = np.unique(column, return_inverse=True)[1]
    return labels


def standardise(x: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Columns of x (n, D) with the mean and deviation of those of `like` (x itself) taken out.

    A constant column becomes 0.
    """
    like = x if like is None else like
    scale = np.where(np.ptp(like, axis=0) > 0, like.std(axis=0), np.inf)
    return (x - like.mean(axis=0)) / scale
