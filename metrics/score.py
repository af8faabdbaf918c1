"""Several metrics at once, as one flat dict of plain values."""

import inspect
import json
import time
import zlib
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_limits

from metrics.registry import JOINT, METRICS, PARTS, select
from metrics.samples import as_samples

NOT_FINITE = "a number of it is not finite"


def score_all(
    codes,
    factors,
    *,
    metrics=("all",),
    seed: int = 0,
    repeats: int = 1,
    logvar=None,
    settings: dict[str, dict] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict]:
    """Scores of the chosen metrics: key -> {score, protocol, per_factor, ..., seconds}.

    Codes and factors as in `as_samples`; metrics as in `select`; settings: metric (or "dci",
    "dci_fast") -> keyword arguments; logvar goes to the metrics that have such an argument. Every
    metric draws from its own generator, a function of (seed, its name, repeat), so a score does not
    depend on what else is computed. With `repeats` > 1 numbers are means over the draws, `spread`
    is the standard deviation (ddof 1) of the score and `scores` lists them; what differs among the
    settings is left out. A metric that cannot be
    computed has score None and a `reason`. `progress(name, done, total)` is called before each
    metric and at the end. `seconds` (total time) comes last and is all that may differ between two
    calls. Raises ValueError for bad codes or factors, an unknown metric and repeats < 1.
    """
    samples, keys, settings = as_samples(codes, factors), select(metrics), settings or {}
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}; 1 or more are allowed")
    names = (METRICS.keys() - PARTS.keys()) | JOINT.keys()
    if unknown := settings.keys() - names:
        raise ValueError(f"settings for {min(unknown)!r}; allowed are {', '.join(sorted(names))}")
    computations = {}  # name -> {key: aspect or None}
    for key in keys:
        name, aspect = PARTS.get(key, (key, None))
        computations.setdefault(name, {})[key] = aspect
    scores, report = {}, progress or (lambda name, done, total: None)
    for done, (name, parts) in enumerate(computations.items()):
        report(name, done, len(computations))
        given = dict(settings.get(name, {}))
        if "logvar" in inspect.signature(JOINT.get(name) or METRICS[name]).parameters:
            given["logvar"] = logvar
        start = time.perf_counter()
        outcome = _repeat(name, samples, seed, repeats, given)
        seconds = time.perf_counter() - start
        for key, aspect in parts.items():
            if isinstance(outcome, str):
                scores[key] = {"score": None, "reason": outcome}
            else:
                found = _merge([(r[aspect] if aspect else r).to_json() for r in outcome])
                scores[key] = found if _is_finite(found) else {"score": None, "reason": NOT_FINITE}
            if samples.left_out:
                scores[key]["constant_factors"] = list(samples.left_out)
            scores[key]["seconds"] = seconds
    report("", len(computations), len(computations))
    return scores


def _repeat(name: str, samples, seed: int, repeats: int, settings: dict):
    """Results of `repeats` draws, or the reason why there are none."""
    metric = JOINT.get(name) or METRICS[name]
    streams = (np.random.default_rng([seed, zlib.crc32(name.encode()), r]) for r in range(repeats))
    try:
        # One thread for linear algebra: matrices are small, and sums depend on the number of them.
        with threadpool_limits(1):
            return [metric(samples, None, rng, **settings) for rng in streams]
    except ValueError as reason:
        return str(reason)


def _is_finite(entry: dict) -> bool:
    """Whether no number of a JSON entry is NaN or infinite."""
    try:
        json.dumps(entry, allow_nan=False)
    except ValueError:
        return False
    return True


def _merge(entries: list[dict]) -> dict:
    """One JSON entry for several draws: means of all numbers, spread and list of the scores."""
    if len(entries) == 1:
        return entries[0]
    merged = dict(entries[0])
    scores = [entry["score"] for entry in entries]
    merged["score"] = float(np.mean(scores))
    for detail in merged.keys() & {"per_factor", "per_code"}:
        merged[detail] = {
            name: float(np.mean([entry[detail][name] for entry in entries]))
            for name in merged[detail]
        }
    if "matrix" in merged:
        values = np.mean([entry["matrix"]["values"] for entry in entries], axis=0)
        merged["matrix"] = merged["matrix"] | {"values": values.tolist()}
    if settings := merged.get("settings"):
        same = {k: v for k, v in settings.items() if all(e["settings"][k] == v for e in entries)}
        merged["settings"] = same
    spread = {"spread": float(np.std(scores, ddof=1)), "scores": scores}
    return {"score": merged.pop("score"), **spread, **merged}
