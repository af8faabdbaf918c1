"""Disentanglement metrics on plain arrays: `metric(codes, factors, rng, **settings) -> Result`.

codes (N, D): array, torch tensor or anything `as_samples` takes; factors (N, K) or a grid. A
metric with a setting `logvar` is given the posterior's log-variances (N, D), or None.
"""

from metrics.prediction import dci, dci_fast
from metrics.result import Result
from metrics.samples import Samples, as_codes, as_logvar, as_samples
from metrics.score import JOINT, METRICS, PARTS, score_all, select
from metrics.udr import udr

__all__ = [
    "JOINT",
    "METRICS",
    "PARTS",
    "Result",
    "Samples",
    "as_codes",
    "as_logvar",
    "as_samples",
    "dci",
    "dci_fast",
    "score_all",
    "select",
    "udr",
]
