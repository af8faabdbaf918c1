"""UDR: how far several runs of one configuration found the same codes, without any factor."""

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import Lasso

from metrics.result import Result
from metrics.samples import as_codes, as_logvar, need, standardise

MIN_KL = 0.01  # nats a code must carry to count, as in the reference
MIN_STD = 0.05  # of the means, where the posterior is not given: as in the FactorVAE score


def udr(
    runs,
    rng: np.random.Generator,
    *,
    logvars=None,
    correlation: str = "lasso",
    num_samples: int = 10_000,
) -> Result:
    """Unsupervised disentanglement ranking of Duan et al. (2020).

    R is the |coefficient| of a Lasso (alpha .1) from the standardised codes of one run to those
    of another, or their |Spearman| correlation; a pair scores the mean of max^2/sum over its
    columns and over its rows, half each; a run the median over the pairs from the others to it.
    runs: codes (N, D) of two runs or more on the same images. logvars: their log-variances
    (N, D); codes below .01 nats KL are left out (without logvars: codes with a standard
    deviation below .05). A run without an active code scores 0 and says nothing of the others (its
    pairs are undefined in the reference). correlation: "lasso" or "spearman". Range 0 ... 1. The
    score is the mean over runs, `per_code` is empty and `settings["scores"]` has one score a run.
    Raises ValueError where fewer than two runs have an active code.
    """
    allowed = {"lasso": _lasso, "spearman": _spearman}
    need(correlation in allowed, f"correlation = {correlation!r}; allowed are {', '.join(allowed)}")
    runs = [as_codes(codes, f"run {i}") for i, codes in enumerate(runs)]
    need(len(runs) > 1, f"udr compares runs with each other: two are needed, not {len(runs)}")
    lengths = {len(codes) for codes in runs}
    need(len(lengths) == 1, f"runs have different numbers of rows: {sorted(lengths)}")
    total = lengths.pop()
    need(num_samples <= total, f"num_samples = {num_samples}, but there are {total} rows")
    rows = rng.choice(total, size=num_samples, replace=False)
    if logvars is not None and len(logvars) != len(runs):
        raise ValueError(f"logvars of {len(logvars)} runs are given for {len(runs)}")
    active = []
    for i, codes in enumerate(runs):
        mean = np.asarray(codes[rows], dtype=np.float64)
        used = mean.std(axis=0) >= MIN_STD
        if logvars is not None:
            logvar = as_logvar(logvars[i], codes, f"logvar {i}")
            logvar = np.asarray(logvar[rows], dtype=np.float64)
            used = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean(axis=0) > MIN_KL
        active.append(standardise(mean[:, used]))
    alive = [i for i, codes in enumerate(active) if codes.shape[1]]
    need(len(alive) > 1, f"fewer than two of {len(runs)} runs have an active code")
    scores = [0.0] * len(runs)
    for j in alive:
        others = [allowed[correlation](active[i], active[j]) for i in alive if i != j]
        scores[j] = float(np.median([_one_to_one(strength) for strength in others]))
    return Result(
        score=np.mean(scores),
        protocol=f"Duan et al. 2020, {correlation}",
        settings={"num_samples": num_samples, "runs": len(runs), "scores": scores},
    )


def _lasso(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """|coefficients| (D source, D target)."""
    return np.abs(np.atleast_2d(Lasso(alpha=0.1).fit(source, target).coef_)).T


def _spearman(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """|rank correlations| (D source, D target)."""
    source, target = (standardise(rankdata(x, axis=0)) for x in (source, target))
    return np.abs(source.T @ target) / len(source)


def _one_to_one(strength: np.ndarray) -> float:
    """Half the sum of the means over columns and over rows of max^2/sum (0 for zeros)."""
    means = []
    for axis in (0, 1):
        total = strength.sum(axis=axis)
        means.append((strength.max(axis=axis) ** 2 / np.where(total > 0, total, 1)).mean())
    return sum(means) / 2
