"""Which images are trained on: combinations of factors that are held out, correlated factors."""

import ast
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import WithJsonSchema
from torch import Tensor

from data.images import ImageData

SPLIT_SEED = 0  # of a random share; runs with other seeds train on the same images
# Rules of the named splits: (rank of a factor's value, number of its values) -> kept (N,), from
# ranks (N, K) and sizes (K,). Names of Schott et al. 2022: https://arxiv.org/abs/2107.08221
SPLITS = {
    "composition": lambda rank, size: (2 * rank >= size).sum(1) <= 1,
    "interpolation": lambda rank, size: ~((rank % 4 == 2) & (rank < size - 1)).any(1),
    "extrapolation": lambda rank, size: (rank < 3 * size // 4).all(1),
}
OPERATIONS = (ast.BoolOp, ast.UnaryOp, ast.Compare, ast.boolop, ast.unaryop, ast.cmpop)
ALLOWED = (*OPERATIONS, ast.Expression, ast.List, ast.Name, ast.Load)  # in an expression

KEEP = f"an expression, {{random: share}} or {{{' | '.join(SPLITS)}: [factors]}}"
CORRELATE = "{factors: [two names], sigma: number above 0}"
Keep = Annotated[Any, WithJsonSchema({"type": KEEP})]
Correlate = Annotated[Any, WithJsonSchema({"type": CORRELATE})]


def restrict(data: ImageData, *, keep: Keep = None, correlate: Correlate = None) -> ImageData:
    """A data set that is trained on a part of its images; scores and pictures still use all.

    Args:
        keep: what is trained on, as "not (shape == 2 and orientation < 20)"; docs/datasets.md.
        correlate: draws images with p(c1, c2) ~ exp(-(c1 - c2)^2 / (2 sigma^2)), c from 0 to 1.
    """
    if keep is not None:
        mask = _kept(data, keep)
        if not 2 <= mask.sum() < len(data):
            kept = f"keeps {mask.sum():,} of {len(data):,} images; allowed: 2 or more, not all"
            raise ValueError(f"dataset.keep: {keep} {kept}")
        data = replace(data, kept=torch.from_numpy(np.flatnonzero(mask)))
    if correlate is not None:
        weights = _pair_weights(data, correlate)
        sums = (weights if data.kept is None else weights[data.kept]).cumsum(0)
        data = replace(data, cumulative=sums / sums[-1])
    return data


def _kept(data: ImageData, keep: Any) -> np.ndarray:
    """Whether each image is trained on: (N,) bool."""
    if isinstance(keep, str):
        return _evaluate(keep, _columns(data, "keep"))
    kind, value = next(iter(keep.items())) if isinstance(keep, dict) and len(keep) == 1 else ("", 0)
    if kind == "random" and isinstance(value, float):
        generator = torch.Generator().manual_seed(SPLIT_SEED)
        return torch.randperm(len(data), generator=generator).numpy() < value * len(data)
    if kind not in SPLITS or not isinstance(value, list) or not value:
        raise ValueError(f"dataset.keep: {keep!r} is not allowed; allowed: {KEEP}")
    columns = _columns(data, "keep", value)
    unique = [np.unique(column, return_inverse=True) for column in columns.values()]
    rank, size = np.stack([rank for _, rank in unique], 1), [len(values) for values, _ in unique]
    return SPLITS[kind](rank, np.array(size))


def _evaluate(text: str, columns: dict[str, np.ndarray]) -> np.ndarray:
    """The value (N,) bool of an expression, which may only compare factors with numbers."""
    allowed = f"comparisons of {', '.join(columns)} with numbers, joined by and, or, not"
    message = f"dataset.keep: '{text}' is not allowed; allowed: {allowed}"
    try:
        for node in ast.walk(ast.parse(text.strip(), mode="eval")):
            is_number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
            is_factor = not isinstance(node, ast.Name) or node.id in columns
            if not (is_number or isinstance(node, ALLOWED)) or not is_factor:
                raise ValueError(message)
        mask = np.asarray(pd.DataFrame(columns).eval(text.strip(), engine="python"))
    except (SyntaxError, TypeError, NotImplementedError) as error:  # the latter two of pandas
        raise ValueError(message) from error
    if mask.dtype != bool or mask.ndim != 1:
        raise ValueError(message)
    return mask


def _pair_weights(data: ImageData, correlate: Any) -> Tensor:
    """The relative frequency of each image, (N,) float64.

    Traeuble et al. 2021, https://arxiv.org/abs/2006.07886, with factors scaled to [0, 1] as in
    https://github.com/facebookresearch/disentangling-correlated-factors (Roth et al. 2023).
    """
    is_complete = isinstance(correlate, dict) and set(correlate) == {"factors", "sigma"}
    names, sigma = (correlate["factors"], correlate["sigma"]) if is_complete else ((), 0)
    is_pair = isinstance(names, list) and len(names) == 2 and names[0] != names[1]
    if not is_pair or type(sigma) not in (int, float) or not 0 < sigma < np.inf:
        raise ValueError(f"dataset.correlate: {correlate} is not allowed; allowed: {CORRELATE}")
    columns = _columns(data, "correlate", names).values()
    first, second = ((c - c.min()) / max(np.ptp(c), 1e-9) for c in columns)
    return torch.from_numpy(np.exp(-((first - second) ** 2) / (2 * sigma**2)))


def _columns(data: ImageData, key: str, names: list[str] | None = None) -> dict[str, np.ndarray]:
    """Name -> values (N,) of the named factors, or of all."""
    known = () if data.grid is None else data.grid.names
    missing = [name for name in names or () if name not in known]
    if missing or not known:
        allowed = ", ".join(known) or "a data set with factors"
        raise ValueError(f"dataset.{key}: no factor {missing or ''}; allowed: {allowed}")
    values = data.grid.factors(np.arange(len(data)))
    return {name: values[:, known.index(name)] for name in names or known}
