"""Metrics without labels: whether runs of a configuration agree, from codes of the same images."""

import itertools

import numpy as np
from numpy.random import Generator
from sklearn.linear_model import Lasso

from metrics.draw import standardise
from metrics.interventions import factor_vae
from metrics.samples import as_array, as_samples, need

MIN_KL = 0.01  # nats of an active code, as in the authors' code of UDR
MIN_STD = 0.05  # of an active code if the KL is unknown, as in the FactorVAE score
LEVELS = 20  # of a code that serves as a factor
VOTES = {"batch_size": 100, "num_train": 800, "num_test": 800}  # as in Lin et al.'s code


def udr(runs, rng: Generator, *, kl=None, num_samples: int = 10_000) -> list[float]:
    """Unsupervised disentanglement ranking of Duan et al. (2020, section 3): do runs agree.

    R is the |coefficient| of a Lasso (strength 0.1) from the standardised active codes of one run
    to those of another. A pair of runs scores the mean of max^2 / sum over the columns and over the
    rows of R, half each. A run scores the median over the pairs from the others to it, 0 without
    an active code. Range 0 to 0.9, about 0 by chance.

    Args:
        runs: codes (N, D) of each run, for the same images.
        kl: mean KL (D,) in nats of each run's latents to the prior.
    """
    active = _active_codes("udr", runs, rng, kl, num_samples)
    scores = [0.0] * len(runs)
    for j, target in active.items():
        pairs = [_pair_score(source, target) for i, source in active.items() if i != j]
        scores[j] = float(np.median(pairs))
    return scores


def _active_codes(
    metric: str, runs, rng: Generator, kl, num_samples: int, at_least: int = 1
) -> dict[int, np.ndarray]:
    """Number of a run -> its active codes, standardised, of the runs with `at_least` so many."""
    need(len(runs) > 1, f"{metric} compares runs with each other; two are needed, not {len(runs)}")
    runs = [as_array(codes, f"run {i}", rows=len(runs[0])) for i, codes in enumerate(runs)]
    rows = rng.choice(len(runs[0]), size=num_samples, replace=False)
    active = {}
    for i, codes in enumerate(runs):
        codes = codes[rows]
        used = codes.std(axis=0) >= MIN_STD if kl is None else np.asarray(kl[i]) > MIN_KL
        if used.sum() >= at_least:
            active[i] = standardise(codes[:, used])
    word = {1: "an active code", 2: "two active codes"}[at_least]
    need(len(active) > 1, f"fewer than two of {len(runs)} runs have {word}")
    return active


def _pair_score(source: np.ndarray, target: np.ndarray) -> float:
    """Score of a pair of runs from their standardised active codes; a row of zeros counts 0."""
    strength = np.abs(np.atleast_2d(Lasso(alpha=0.1).fit(source, target).coef_)).T
    means = []
    for axis in (0, 1):
        total = strength.sum(axis=axis)
        means.append((strength.max(axis=axis) ** 2 / np.where(total > 0, total, 1)).mean())
    return sum(means) / 2


def model_centrality(runs, rng: Generator, *, kl=None, num_samples: int = 10_000) -> list[float]:
    """ModelCentrality of Lin et al. (2020, section 5): is a run like the others.

    One run's active codes, cut into 20 levels with equal counts, are the factors of a FactorVAE
    score of another run. A pair of runs scores the mean of both directions, a run the mean over its
    pairs; the run with the highest score is the medoid. The authors generate images from codes;
    here all runs encode the same ones. Range 0 to 1, about 1 / (number of active codes) by chance,
    0 for a run with fewer than two active codes. Arguments: see `udr`.
    """
    active = _active_codes("ModelCentrality", runs, rng, kl, num_samples, at_least=2)
    fewest = LEVELS * VOTES["batch_size"]
    need(num_samples >= fewest, f"ModelCentrality needs {fewest:,} images, not {num_samples}")
    similarity = np.zeros((len(runs), len(runs)))
    for i, j in itertools.permutations(active, 2):
        levels = active[i].argsort(axis=0).argsort(axis=0) * LEVELS // num_samples
        samples = as_samples(active[j], levels)
        similarity[i, j] = factor_vae(samples, rng, num_variance=num_samples, **VOTES).score
    return list((similarity + similarity.T).sum(axis=0) / 2 / (len(active) - 1))
