"""Drawing rows of samples, labelling and scaling them."""

import math
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.random import Generator

from metrics.samples import Samples, need, to_bins

# Types of the metrics' settings. `score_all` can scale the last two to the number of rows.
AtLeastOne = Annotated[int, Ge(1)]
AtLeastTwo = Annotated[int, Ge(2)]
Rows = Annotated[int, Ge(2), "rows drawn"]
RowsPerValue = Annotated[int, Ge(2), "rows that share the value of a factor"]

FEW_COPIES = 40  # a draw of 1/40 of a grid has at most one row in 40 twice


def sample(
    samples: Samples, rng: Generator, num: int, key: str, *, distinct: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draw codes (num, D) and factor values (num, K); `key` names the setting `num` in messages.

    Rows come from a full grid with replacement, as in the study of Locatello et al. (2019), unless
    they must be `distinct` and the grid is small; from other samples without.
    """
    if samples.sizes is not None and not (distinct and len(samples) < FEW_COPIES * num):
        rows = rng.integers(len(samples), size=num)
    else:
        few = f"{key} = {num}, but there are only {len(samples)} rows (--samples auto)"
        need(num <= len(samples), few)
        rows = rng.choice(len(samples), size=num, replace=False)
    x, y = samples.take(rows), samples.factors[rows]
    for name, values in zip(samples.names, y.T, strict=True):
        need(np.ptp(values) > 0, f"{name!r} has a single value in the {num} rows drawn")
    return x, y


def train_test(samples: Samples, rng: Generator, metric: str, num_train: int, num_test: int):
    """Draw a training and a test set, (x, y), (x, y); no row of a small grid is in both."""
    key = f"{metric}.num_train + {metric}.num_test"
    x, y = sample(samples, rng, num_train + num_test, key, distinct=True)
    need(np.ptp(y[:num_train], axis=0).all(), "a factor has a single value in the training rows")
    return (x[:num_train], y[:num_train]), (x[num_train:], y[num_train:])


def partners(
    samples: Samples, rng: Generator, rows: np.ndarray, factor: int, at_least: int, key: str
) -> np.ndarray:
    """Draw for each of `rows` a row with the same value of one factor."""
    if samples.sizes is not None:
        size, stride = samples.sizes[factor], math.prod(samples.sizes[factor + 1 :])
        other = rng.integers(len(samples), size=rows.shape)
        return other + (rows // stride % size - other // stride % size) * stride
    values = samples.factors[:, factor]
    need_often(samples.names[factor], values, at_least, key)
    # Sort the rows by value; from its place, each row steps at random inside its group.
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    place = np.argsort(order)
    start, count = (np.cumsum(counts) - counts)[group[rows]], counts[group[rows]]
    step = 1 + rng.integers(count - 1)  # never the row itself
    return order[start + (place[rows] - start + step) % count]


def need_often(name: str, values: np.ndarray, at_least: int, key: str) -> None:
    """Raise ValueError unless each value (n,) of a factor occurs as often as `key` needs."""
    distinct, counts = np.unique(values, return_counts=True)
    rarest = counts.argmin()
    rare = f"{name!r} has the value {distinct[rarest]:g} in {counts[rarest]} of {len(values)} rows"
    need(counts[rarest] >= at_least, f"{rare}; {key} needs {at_least}")


def to_labels(samples: Samples, values: np.ndarray, num_bins: int) -> np.ndarray:
    """Factor values (n, K) as labels 0 ... m - 1 (n, K); continuous factors are binned."""
    labels = np.empty(values.shape, dtype=np.int64)
    for k, column in enumerate(values.T):
        classes = to_bins(column, num_bins) if samples.continuous[k] else column
        labels[:, k] = np.unique(classes, return_inverse=True)[1]
    return labels


def standardise(x: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Columns of x (n, D) with the mean and deviation of `like` (or x) taken out; 0 if constant."""
    like = x if like is None else like
    scale = np.where(np.ptp(like, axis=0) > 0, like.std(axis=0), np.inf)
    return (x - like.mean(axis=0)) / scale
