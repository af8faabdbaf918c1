"""Statistics over many runs: a data frame with a row a run in, small data frames out.

Its columns are `config`, `seed` and one for each metric; nan is a score that could not be computed.
"""

import json
import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import PermutationMethod, mannwhitneyu

LOWER_IS_BETTER = ("gaussian_total_correlation", "mutual_info_score")
SMALLEST_GROUP = 3  # runs: below it not even a perfect split of two groups says anything
ALL_SPLITS = 20_000  # up to so many ways to split two groups every one is looked at


def summarise(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Mean, standard deviation (std, ddof 1), median and count: a row for each (config, metric)."""
    long = frame.melt("config", columns, var_name="metric")
    grouped = long.groupby(["config", "metric"], sort=False)["value"]
    return grouped.agg(["mean", "std", "median", "count"])


def choices(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """What choosing a run without labels costs: a row for each (config, column).

    frame's `udr` chooses one run of each configuration: `seed` and its `score`; `best_seed` and
    `best` are of the run with the best score (the lowest for LOWER_IS_BETTER). A configuration
    without `udr`, and a column without a score, have no row.
    """
    rows = []
    for name, runs in frame.groupby("config", sort=False):
        if "udr" not in runs or runs["udr"].isna().all():
            continue
        chosen = runs.loc[runs["udr"].idxmax()]
        for column in columns:
            if runs[column].isna().all():
                continue
            lower = column in LOWER_IS_BETTER
            best = runs.loc[runs[column].idxmin() if lower else runs[column].idxmax()]
            ours = {"config": name, "metric": column, "seed": chosen["seed"]}
            ours |= {"score": chosen[column], "best_seed": best["seed"], "best": best[column]}
            rows.append(ours)
    return pd.DataFrame(rows, columns=["config", "metric", "seed", "score", "best_seed", "best"])


def significance(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Two-sided Mann-Whitney U of each pair of configurations on each column.

    Rows: metric, a, b, n_a, n_b, u (of a), p and p_holm, corrected over all pairs on one metric
    (Holm 1979). Only groups of SMALLEST_GROUP runs or more. With few runs p is exact, also where
    scores are tied: twice the share of all splits of the two groups that are as extreme on the same
    side (at most 1).
    """
    groups = dict(list(frame.groupby("config", sort=False)))
    rows = []
    for column in columns:
        for a, b in combinations(groups, 2):
            x, y = (groups[name][column].dropna().to_numpy() for name in (a, b))
            if min(len(x), len(y)) < SMALLEST_GROUP:
                continue
            few = math.comb(len(x) + len(y), len(x)) <= ALL_SPLITS
            method = PermutationMethod(n_resamples=ALL_SPLITS) if few else "auto"
            u, p = mannwhitneyu(x, y, method=method)
            rows.append((column, a, b, len(x), len(y), float(u), float(p)))
    table = pd.DataFrame(rows, columns=["metric", "a", "b", "n_a", "n_b", "u", "p"])
    by_metric = table.groupby("metric", sort=False)["p"]
    return table.assign(p_holm=by_metric.transform(lambda p: holm(p.to_numpy(np.float64))))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values (m,) corrected for all m of them (Holm 1979): the k-th smallest times m + 1 - k."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    scaled = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected


def families(configs: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Groups of configurations that differ in one number: its key -> [{config: value}, ...].

    configs: name -> configuration of two levels. `name` and `seed` tell nobody apart.
    """
    flat = {name: _flatten(values) for name, values in configs.items()}
    found: dict[str, list[dict[str, float]]] = {}
    numbers = (int, float)
    for key in dict.fromkeys(key for values in flat.values() for key in values):
        alike: dict[str, dict[str, float]] = {}
        for name, values in flat.items():
            value = values.get(key)
            if isinstance(value, numbers) and not isinstance(value, bool):
                rest = json.dumps({k: v for k, v in values.items() if k != key}, sort_keys=True)
                alike.setdefault(rest, {})[name] = value
        if members := [group for group in alike.values() if len(set(group.values())) > 1]:
            found[key] = members
    return found


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Configuration of two levels -> "section.key" -> value."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{leaf}": v for leaf, v in value.items()}
        elif key not in ("name", "seed"):
            flat[key] = value
    return flat
