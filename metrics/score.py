"""The metrics by name, and several of them at once as plain values."""

import difflib
import json
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from metrics import information, interventions, prediction
from metrics.draw import Rows, RowsPerValue
from metrics.samples import Result, Samples, need

METRICS: dict[str, Callable[..., Result | dict[str, Result]]] = {
    "beta_vae_paper": interventions.beta_vae_paper,
    "beta_vae": interventions.beta_vae,
    "factor_vae": interventions.factor_vae,
    "mig": information.mig,
    "mig_chen": information.mig_chen,
    "sap": prediction.sap,
    "sap_continuous": prediction.sap_continuous,
    "dci": prediction.dci,
    "dci_fast": prediction.dci_fast,
    "modularity": information.modularity,
    "explicitness": prediction.explicitness,
    "irs": interventions.irs,
    "infom": information.infom,
    "infoc": information.infoc,
    "infoe": prediction.infoe,
    "gaussian_total_correlation": information.gaussian_total_correlation,
    "mutual_info_score": information.mutual_info_score,
}
# Raise a metric's version when its numbers change (`| {"mig": 2}`): older scores are then stale.
VERSIONS = dict.fromkeys(METRICS, 1)
UNSUPERVISED = ("gaussian_total_correlation", "mutual_info_score")  # need no factors
LOWER_IS_BETTER = ("gaussian_total_correlation", "mutual_info_score")
ASPECTS = ("disentanglement", "completeness", "informativeness")  # of DCI, a score each
SCORES: dict[str, str] = {}  # key of a score -> name of its metric
for _name in METRICS:
    _keys = [f"{_name}_{aspect}" for aspect in ASPECTS] if _name in ("dci", "dci_fast") else [_name]
    SCORES |= dict.fromkeys(_keys, _name)


def select(names: Iterable[str]) -> list[str]:
    """Names of metrics, in the order of METRICS, for names of metrics or of scores or "all"."""
    metrics = SCORES | {name: name for name in METRICS}  # name of a score or metric -> metric
    names = [name.strip() for name in names]
    for name in names:
        if name not in metrics and name != "all":
            close = difflib.get_close_matches(name, metrics, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"unknown metric {name!r}{hint} Allowed: all, {', '.join(METRICS)}")
    selected = METRICS if "all" in names else {metrics[name] for name in names}
    return [name for name in METRICS if name in selected]


def complete_settings(metric: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a metric, as in its entry: the defaults of its signature with `settings`."""
    complete = (METRICS[metric].__kwdefaults__ or {}) | dict(settings)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in complete.items()}


def score_all(
    samples: Samples,
    names: Iterable[str],
    *,
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    scale_samples: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compute metrics one after the other, each with random numbers of its own.

    Args:
        settings: name of a metric -> settings that differ from the defaults of its signature.
        scale_samples: lower the settings that ask for more rows than there are.

    Yields:
        A key of SCORES and a dict of plain values: score (None with a reason if it cannot be
        computed), version, seed, settings, seconds, note, and the fields of the Result.
    """
    for name in select(names):
        own = (settings or {}).get(name, {})
        yield from _score(name, samples, seed, complete_settings(name, own), scale_samples).items()


def _score(name: str, samples: Samples, seed: int, settings: dict, scale: bool) -> dict:
    """The entries of one metric by score key."""
    start = time.perf_counter()
    is_possible = samples.names or name in UNSUPERVISED
    notes = [] if name in UNSUPERVISED else list(samples.notes)
    if is_possible and scale and (lowered := _lowered(name, settings, samples)):
        notes.append(f"{' and '.join(lowered)} lowered, as there are only {len(samples)} rows")
        settings |= lowered
    facts = {"version": VERSIONS[name], "seed": seed, "settings": settings}
    keys = [key for key, metric in SCORES.items() if metric == name]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), 0])
    try:
        need(is_possible, f"{name} needs factors, and there are none")
        # One thread for linear algebra, because sums depend on the number of threads.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # protocols fix the step limits
            results = METRICS[name](samples, rng, **settings)
        results = results.values() if isinstance(results, dict) else [results]
        entries = [result.to_json() for result in results]
        json.dumps(entries, allow_nan=False)  # ValueError if a number is not finite
    except ValueError as error:
        entries = [{"score": None, "reason": str(error)}] * len(keys)
    rest = {"note": "; ".join(notes)} if notes else {}
    rest["seconds"] = time.perf_counter() - start
    entries = [{"score": entry["score"]} | facts | entry | rest for entry in entries]
    return dict(zip(keys, entries, strict=True))


def _lowered(metric: str, settings: Mapping[str, Any], samples: Samples) -> dict[str, int]:
    """The settings that ask for more rows than there are, lowered to the number of rows."""
    types = METRICS[metric].__annotations__
    rows = {key: settings[key] for key, kind in types.items() if kind == Rows}
    total = max(sum(rows.values()), len(samples))
    lowered = {key: value * len(samples) // total for key, value in rows.items()}
    if samples.sizes is None:
        discrete = samples.factors.T[~samples.continuous]
        counts = [int(np.unique(values, return_counts=True)[1].min()) for values in discrete]
        rarest = max(min(counts, default=len(samples)), 2)
        lowered |= {key: rarest for key, kind in types.items() if kind == RowsPerValue}
    return {key: value for key, value in lowered.items() if value < settings[key]}
