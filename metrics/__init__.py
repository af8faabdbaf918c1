"""Disentanglement metrics on plain arrays: `metric(samples, rng, **settings) -> Result`."""
# ruff: noqa: F401

from metrics.agreement import model_centrality, udr
from metrics.samples import Result, Samples, as_samples
from metrics.score import (
    LOWER_IS_BETTER,
    METRICS,
    SCORES,
    UNSUPERVISED,
    VERSIONS,
    complete_settings,
    score_all,
    select,
)
