"""Disentanglement metrics on plain arrays: `metric(codes, factors, rng, **settings) -> Result`.

codes (N, D): array, torch tensor or anything `as_samples` takes; factors (N, K) or a grid. A
metric with a setting `logvar` is given the posterior's log-variances (N, D), or None.
"""

from metrics.prediction import dci, dci_fast
from metrics.registry import JOINT, LOWER_IS_BETTER, METRICS, PARTS, code_of, select
from metrics.result import Result
from metrics.samples import Samples, as_codes, as_logvar, as_samples
from metrics.score import score_all
from metrics.udr import udr

__all__ = [
    "JOINT",
    "LOWER_IS_BETTER",
    "METRICS",
    "PARTS",
    "Result",
    "Samples",
    "as_codes",
    "as_logvar",
    "as_samples",
    "code_of",
    "dci",
    "dci_fast",
    "score_all",
    "select",
    "udr",
]
