"""Statistics over many runs: a data frame with a row a run in, small data frames out.

Its columns are `config`, `seed` and one for each metric; nan is a score that could not be computed.
"""

import json
import math
from itertools import combinations
from typing import Any

import pandas as pd
from scikit_posthocs import posthoc_dunn
from scipy.stats import PermutationMethod, mannwhitneyu

from metrics.registry import LOWER_IS_BETTER

SMALLEST_GROUP = 3  # runs: below it not even a perfect split of two groups says anything
ALL_SPLITS = 20_000  # up to so many ways to split two groups every one is looked at


def directed(labels: dict[str, str]) -> dict[str, str]:
    """Labels of metrics (metric -> what it is called) that say where low is good."""
    low = " (lower is better)"
    return {key: label + low * (key in LOWER_IS_BETTER) for key, label in labels.items()}


def summarise(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Mean, standard deviation (std, ddof 1), median and count: a row for each (config, metric)."""
    long = frame.melt("config", columns, var_name="metric")
    grouped = long.groupby(["config", "metric"], sort=False)["value"]
    return grouped.agg(["mean", "std", "median", "count"])


def choices(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """What choosing a run without labels costs: a row for each (config, column).

    frame's `udr` chooses one run of each configuration: `seed` and its `score`; `best_seed` and
    `best` are of the run with the best score (the lowest for LOWER_IS_BETTER). A configuration
    of fewer than SMALLEST_GROUP runs with `udr` (two are each other's only judge), and a column
    without a score, have no row.
    """
    rows = []
    for name, runs in frame.groupby("config", sort=False):
        if "udr" not in runs or runs["udr"].count() < SMALLEST_GROUP:
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
    """Which pairs of configurations differ on each column, by two-sided tests of ranks.

    Rows: metric, a, b, n_a, n_b, u and p (Mann-Whitney of the pair by itself; u of a) and p_dunn
    (Dunn 1964: mean ranks among the runs of all configurations, corrected over all pairs on one
    metric after Holm 1979). Only groups of SMALLEST_GROUP runs or more. With few runs p is exact,
    also where scores are tied: twice the share of all splits of the two groups that are as extreme
    on the same side (at most 1). A correction of it over many pairs could not reject anything;
    p_dunn can, by the normal approximation.
    """
    rows = []
    for column in columns:
        runs = frame[["config", column]].dropna()
        runs = runs[runs.groupby("config")[column].transform("size") >= SMALLEST_GROUP]
        groups = {name: group.to_numpy() for name, group in runs.groupby("config")[column]}
        tied = runs[column].nunique() == 1  # Dunn's statistic is 0/0
        dunn = None if tied or len(groups) < 2 else posthoc_dunn(runs, column, "config", "holm")
        for a, b in combinations(dict.fromkeys(runs["config"]), 2):
            x, y = groups[a], groups[b]
            few = math.comb(len(x) + len(y), len(x)) <= ALL_SPLITS
            method = PermutationMethod(n_resamples=ALL_SPLITS) if few else "auto"
            u, p = mannwhitneyu(x, y, method=method)
            p_dunn = 1.0 if dunn is None else float(dunn.loc[a, b])
            rows.append((column, a, b, len(x), len(y), float(u), float(p), p_dunn))
    return pd.DataFrame(rows, columns=["metric", "a", "b", "n_a", "n_b", "u", "p", "p_dunn"])


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
