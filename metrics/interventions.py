"""Metrics that hold one factor and vary the others: beta-VAE, FactorVAE and IRS."""

from typing import Annotated

import numpy as np
from annotated_types import Interval
from sklearn.linear_model import LogisticRegression

from metrics.prediction import fit_quietly
from metrics.result import Result, by_code, by_name
from metrics.samples import (
    AtLeastOne,
    AtLeastTwo,
    Samples,
    as_samples,
    need,
    need_at_least,
    need_discrete,
    need_often,
    partners,
    sample,
    to_bins,
)

CHUNK = 2**23  # numbers gathered at once: 64 MB
IRS_SAMPLES = 20  # of a factor value, from which uniform noise scores .03 or less


def beta_vae_paper(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_pairs: AtLeastOne = 30,
    num_train: AtLeastTwo = 5_000,
    num_test: AtLeastOne = 5_000,
    classifier_seeds: AtLeastOne = 3,
    without: tuple[str, ...] = ("shape",),
) -> Result:
    """Disentanglement metric of Higgins et al. (ICLR 2017, section 3): accuracy on new points.

    A point is the mean over `num_pairs` pairs of |z1 - z2|, each pair agreeing in one value of
    the factor that a linear softmax classifier has to name. Factors named in `without` are
    never the fixed one: on dSprites four remain and chance is 1/4. Range 0 ... 1. The paper trains
    with Adagrad (rate 1e-2) to convergence from random starts; the problem is convex, so we
    go towards its optimum (100 iterations of L-BFGS; ten mixed codes take up to 167, raw pixels
    295, which moved their score by .01) and let each of `classifier_seeds` draw new points.
    scikit-learn's weak L2 penalty (C = 1) keeps it finite where the points are separable;
    elsewhere it moves the score of codes of scale 1 by .01 at most (Adagrad stopped after 20,000
    steps gives up to .09 less), but codes that vary by hundredths may fall to chance: scale them.
    The score is the mean over seeds. Plain samples are split: no row is in both training and test
    points.
    """
    samples = as_samples(codes, factors)
    need_at_least(1, classifier_seeds=classifier_seeds)
    fixed = [k for k, name in enumerate(samples.names) if name not in without]
    sizes = {"num_pairs": num_pairs, "num_train": num_train, "num_test": num_test}
    runs = [_pairs_accuracy(samples, rng, fixed, **sizes) for _ in range(classifier_seeds)]
    names = [samples.names[k] for k in fixed]
    return Result(
        score=np.mean([score for score, _ in runs]),
        protocol=f"Higgins et al. 2017, {len(fixed)} factors",
        per_factor=by_name(names, np.mean([recall for _, recall in runs], axis=0)),
        settings=sizes
        | {
            "classifier_seeds": classifier_seeds,
            "fixed": names,
            "scores": [float(score) for score, _ in runs],
        },
    )


def beta_vae(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_pairs: AtLeastOne = 64,
    num_train: AtLeastTwo = 10_000,
    num_test: AtLeastOne = 5_000,
) -> Result:
    """BetaVAE score of Locatello et al. (2019): as `beta_vae_paper`, every factor is fixed.

    Logistic regression with scikit-learn's defaults, one draw. Range 0 ... 1, chance 1/K.
    """
    samples = as_samples(codes, factors)
    sizes = {"num_pairs": num_pairs, "num_train": num_train, "num_test": num_test}
    score, recall = _pairs_accuracy(samples, rng, list(range(len(samples.names))), **sizes)
    return Result(
        score=score,
        protocol=f"Locatello et al. 2019, {len(samples.names)} factors",
        per_factor=by_name(samples.names, recall),
        settings=sizes,
    )


def _pairs_accuracy(samples: Samples, rng, fixed, num_pairs, num_train, num_test):
    """Accuracy and recall per fixed factor of the classifier on the test points."""
    need(len(fixed) > 1, f"the beta-VAE metric needs two factors to tell apart, not {len(fixed)}")
    need_discrete(samples, "the beta-VAE metric", "bin it or leave it out")
    need_at_least(1, num_pairs=num_pairs, num_train=num_train, num_test=num_test)
    labels = rng.integers(len(fixed), size=num_train + num_test)
    train, test = slice(num_train), slice(num_train, None)
    if samples.sizes is not None:
        points = _points(samples, rng, fixed, labels, num_pairs)
    else:
        halves = zip(samples.split(rng, num_train / len(labels)), (train, test), strict=True)
        points = np.concatenate(
            [_points(half, rng, fixed, labels[part], num_pairs) for half, part in halves]
        )
    classifier = fit_quietly(LogisticRegression(), points[train], labels[train])
    right = classifier.predict(points[test]) == labels[test]
    found, there = (
        np.bincount(x, minlength=len(fixed)) for x in (labels[test][right], labels[test])
    )
    return right.mean(), found / np.maximum(there, 1)


def _points(samples: Samples, rng, fixed, labels, num_pairs) -> np.ndarray:
    """Points (n, D): the mean distance of pairs that agree in the factor of each label (n,)."""
    points = np.empty((len(labels), samples.codes.shape[1]))
    for label, factor in enumerate(fixed):
        (mine,) = np.nonzero(labels == label)
        rows = rng.integers(len(samples), size=(len(mine), num_pairs))
        others = partners(samples, rng, rows, factor, at_least=2)
        step = max(1, CHUNK // (num_pairs * points.shape[1]))
        for i in range(0, len(mine), step):
            part = slice(i, i + step)
            apart = np.abs(samples.take(rows[part]) - samples.take(others[part]))
            points[mine[part]] = apart.mean(axis=1)
    return points


def factor_vae(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    batch_size: AtLeastTwo = 64,
    num_train: AtLeastOne = 10_000,
    num_test: AtLeastOne = 5_000,
    num_variance: AtLeastTwo = 10_000,
    min_std: Annotated[float, Interval(ge=0)] = 0.05,
) -> Result:
    """FactorVAE score of Kim & Mnih (2018, section 4): accuracy of a majority vote.

    In a batch that shares one value of one factor, the code whose variance is smallest
    relative to its variance over `num_variance` samples votes for that factor. Codes with a
    standard deviation below `min_std` do not vote, constant codes never (5e-2 as in the
    configuration of the 2019 study; its code prunes nothing by default and then a constant code
    gives 0/0). Range 0 ... 1,
    chance about 1/K, 0 if no code is active. The matrix holds the training votes, as shares.
    """
    samples = as_samples(codes, factors)
    names, num_codes = samples.names, samples.codes.shape[1]
    need(len(names) > 1, "the FactorVAE score needs two factors to tell apart, not 1")
    need_discrete(samples, "the FactorVAE score", "bin it or leave it out")
    need_at_least(1, num_train=num_train, num_test=num_test)
    need_at_least(2, batch_size=batch_size, num_variance=num_variance)
    variance = sample(samples, rng, num_variance, "num_variance")[0].var(axis=0, ddof=1)
    active = np.flatnonzero((np.sqrt(variance) >= min_std) & (variance > 0))
    votes = np.zeros((2, num_codes, len(names)), dtype=np.int64)  # training, test
    if active.size:
        for part, num in enumerate((num_train, num_test)):
            fixed = rng.integers(len(names), size=num)
            for factor in range(len(names)):
                anchors = rng.integers(len(samples), size=(fixed == factor).sum())
                rows = np.repeat(anchors[:, None], batch_size, axis=1)
                rows = partners(samples, rng, rows, factor, at_least=batch_size)
                step = max(1, CHUNK // (batch_size * num_codes))
                for i in range(0, len(rows), step):
                    local = samples.take(rows[i : i + step]).var(axis=1, ddof=1)
                    winner = active[(local[:, active] / variance[active]).argmin(axis=1)]
                    votes[part, :, factor] += np.bincount(winner, minlength=num_codes)
    majority = votes[0].argmax(axis=1)
    right = votes[1][np.arange(num_codes), majority]
    recall = np.array([right[majority == k].sum() for k in range(len(names))])
    return Result(
        score=right.sum() / num_test,
        protocol="Kim & Mnih 2018, settings of Locatello et al. 2019",
        per_factor=by_name(names, recall / np.maximum(votes[1].sum(axis=0), 1)),
        matrix=votes[0] / num_train,
        matrix_kind="share of the training votes",
        factors=names,
        settings={
            "batch_size": batch_size,
            "num_train": num_train,
            "num_test": num_test,
            "num_variance": num_variance,
            "min_std": min_std,
            "active_codes": len(active),
        },
    )


def irs(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_samples: AtLeastTwo = 10_000,
    quantile: Annotated[float, Interval(gt=0, le=1)] = 0.99,
    num_bins: AtLeastTwo | None = None,
) -> Result:
    """Interventional robustness score of Suter et al. (2019).

    For each value of a factor, the `quantile` of |z - E[z | value]|, averaged over the values
    and divided by max |z - E z|; the score is the mean over codes of 1 - its smallest such
    ratio, weighted by max |z - E z|, so codes count by their raw scale. Range 0 ... 1; pure noise
    gives about .4 for a Gaussian and about 0 for a uniform code; constant codes are left out
    and the score is 0 if there is no other. Values are the factor's own; `num_bins` groups
    them first (as the reference does, which blurs factors with more values than bins) and is
    needed for continuous factors. A value with few samples looks robust by chance: raises
    ValueError where one has fewer than IRS_SAMPLES in the draw.
    """
    samples = as_samples(codes, factors)
    if num_bins is None:
        need_discrete(samples, "irs", "set num_bins")
    x, y = sample(samples, rng, num_samples)
    y = y if num_bins is None else to_bins(y, num_bins)
    largest = np.where(np.ptp(x, axis=0) > 0, np.abs(x - x.mean(axis=0)).max(axis=0), 0)
    matrix = np.zeros((x.shape[1], y.shape[1]))
    active = largest > 0
    for k, labels in enumerate(y.T):
        need_often(samples.names[k], labels, IRS_SAMPLES)
        moved = [_quantile_from_mean(x[labels == v], quantile) for v in np.unique(labels)]
        matrix[active, k] = 1 - np.mean(moved, axis=0)[active] / largest[active]
    per_code = matrix.max(axis=1)
    return Result(
        score=np.average(per_code, weights=largest) if active.any() else 0.0,
        protocol="Suter et al. 2019",
        per_code=by_code(per_code),
        matrix=matrix,
        matrix_kind="1 - deviation within a factor value / largest deviation",
        factors=samples.names,
        settings={"num_samples": num_samples, "quantile": quantile, "num_bins": num_bins},
    )


def _quantile_from_mean(x: np.ndarray, quantile: float) -> np.ndarray:
    """`quantile` of |x - mean| for each column of x (n, D)."""
    return np.quantile(np.abs(x - x.mean(axis=0)), quantile, axis=0)
