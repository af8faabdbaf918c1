"""Metrics that hold one factor and vary the others: beta-VAE, FactorVAE and IRS."""

from dataclasses import replace

import numpy as np
from numpy.random import Generator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score

from metrics.draw import AtLeastOne, AtLeastTwo, Rows, RowsPerValue, need_often, partners, sample
from metrics.samples import Result, Samples, need, to_bins

IRS_ROWS = 20  # of each factor value; fewer make noise look robust (uniform noise: 0.03 at most)


def beta_vae_paper(
    samples: Samples,
    rng: Generator,
    *,
    num_pairs: AtLeastOne = 30,
    num_train: AtLeastTwo = 5_000,
    num_test: AtLeastOne = 5_000,
    classifier_seeds: AtLeastOne = 3,
    without: tuple[str, ...] = ("shape",),
) -> Result:
    """Disentanglement metric of Higgins et al. (ICLR 2017, section 3).

    A point is the mean of |z1 - z2| over pairs of images that agree in one factor, never one in
    `without`. A linear classifier names that factor; the score is its accuracy on new points, mean
    over `classifier_seeds` draws. Range 0 to 1, chance 1 / (number of factors). We train with
    L-BFGS, not Adagrad; its penalty (C = 1) makes codes that vary by hundredths fall to chance.
    """
    samples = samples.discrete()
    fixed = [k for k, name in enumerate(samples.names) if name not in without]
    names, sizes = tuple(samples.names[k] for k in fixed), (num_pairs, num_train, num_test)
    draws = [_pairs_accuracy(samples, rng, fixed, *sizes) for _ in range(classifier_seeds)]
    scores, recalls = zip(*draws, strict=True)
    protocol = f"Higgins et al. 2017, {len(fixed)} factors"
    return Result(np.mean(scores), protocol, names, per_factor=np.mean(recalls, axis=0))


def beta_vae(
    samples: Samples,
    rng: Generator,
    *,
    num_pairs: AtLeastOne = 64,
    num_train: AtLeastTwo = 10_000,
    num_test: AtLeastOne = 5_000,
) -> Result:
    """BetaVAE score of Locatello et al. (2019): `beta_vae_paper` with all K factors; chance 1/K."""
    samples = samples.discrete()
    names, sizes = samples.names, (num_pairs, num_train, num_test)
    score, recall = _pairs_accuracy(samples, rng, range(len(names)), *sizes)
    return Result(score, f"Locatello et al. 2019, {len(names)} factors", names, per_factor=recall)


def _pairs_accuracy(samples: Samples, rng, fixed, num_pairs: int, num_train: int, num_test: int):
    """Accuracy of the classifier on the test points, and its recall for each fixed factor."""
    need(len(fixed) > 1, f"the beta-VAE metric needs two factors to tell apart, not {len(fixed)}")
    labels = rng.integers(len(fixed), size=num_train + num_test)
    train, test = slice(num_train), slice(num_train, None)
    if samples.sizes is not None:
        points = _points(samples, rng, fixed, labels, num_pairs)
    else:  # halves of the rows, so that no row is in both training and test points
        order, cut = rng.permutation(len(samples)), round(num_train / len(labels) * len(samples))
        halves = []
        for rows, part in ((order[:cut], train), (order[cut:], test)):
            half = replace(samples, codes=samples.codes[rows], factors=samples.factors[rows])
            halves.append(_points(half, rng, fixed, labels[part], num_pairs))
        points = np.concatenate(halves)
    predicted = LogisticRegression().fit(points[train], labels[train]).predict(points[test])
    options = {"labels": range(len(fixed)), "average": None, "zero_division": 0}
    return np.mean(predicted == labels[test]), recall_score(labels[test], predicted, **options)


def _points(samples: Samples, rng, fixed, labels: np.ndarray, num_pairs: int) -> np.ndarray:
    """Points (n, D): the mean distance of pairs that agree in the factor of each label (n,)."""
    points = np.empty((len(labels), samples.num_codes))
    for label, factor in enumerate(fixed):
        (places,) = np.nonzero(labels == label)
        rows = rng.integers(len(samples), size=(len(places), num_pairs))
        others = partners(samples, rng, rows, factor, 2, "a pair")
        for part in _parts(rows, samples.num_codes):
            distance = np.abs(samples.take(rows[part]) - samples.take(others[part]))
            points[places[part]] = distance.mean(axis=1)
    return points


def _parts(rows: np.ndarray, num_codes: int) -> list[np.ndarray]:
    """The places 0 ... n - 1 of `rows` (n, m) in parts whose codes take 64 MB at most."""
    return np.array_split(np.arange(len(rows)), 1 + rows.size * num_codes // 2**23)


def factor_vae(
    samples: Samples,
    rng: Generator,
    *,
    batch_size: RowsPerValue = 64,
    num_train: AtLeastOne = 10_000,
    num_test: AtLeastOne = 5_000,
    num_variance: Rows = 10_000,
    min_std: float = 0.05,  # as in the 2019 study's configuration
) -> Result:
    """FactorVAE score of Kim & Mnih (2018, section 4): accuracy of a majority vote.

    In a batch that shares one value of a factor, the code with the smallest variance, relative to
    its variance over `num_variance` rows, votes for that factor. The score is the accuracy of each
    code's majority factor on new votes. Codes with a standard deviation below `min_std` do not
    vote. Range 0 to 1, chance about 1 / K, 0 if no code is active.
    """
    samples = samples.discrete()
    names, num_codes = samples.names, samples.num_codes
    need(len(names) > 1, "the FactorVAE score needs two factors to tell apart, not 1")
    variance = sample(samples, rng, num_variance, "factor_vae.num_variance")[0].var(axis=0, ddof=1)
    active = np.flatnonzero((np.sqrt(variance) >= min_std) & (variance > 0))

    # Count which code votes in batches that share a value of each factor.
    votes = np.zeros((2, num_codes, len(names)), dtype=np.int64)  # training, test
    for part, num in enumerate((num_train, num_test) if active.size else ()):
        fixed = rng.integers(len(names), size=num)
        for factor in range(len(names)):
            anchors = rng.integers(len(samples), size=((fixed == factor).sum(), 1))
            rows = np.repeat(anchors, batch_size, axis=1)
            rows = partners(samples, rng, rows, factor, batch_size, "factor_vae.batch_size")
            for places in _parts(rows, num_codes):
                local = samples.take(rows[places]).var(axis=1, ddof=1)
                winner = active[(local[:, active] / variance[active]).argmin(axis=1)]
                votes[part, :, factor] += np.bincount(winner, minlength=num_codes)

    # Each code stands for the factor that it voted for most often in training.
    majority = votes[0].argmax(axis=1)
    right = votes[1][np.arange(num_codes), majority]
    recall = np.bincount(majority, right, len(names)) / np.maximum(votes[1].sum(axis=0), 1)
    score, matrix = right.sum() / num_test, votes[0] / num_train
    protocol, kind = "Kim & Mnih 2018, settings of Locatello et al. 2019", "share of training votes"
    return Result(score, protocol, names, matrix, kind, per_factor=recall)


def irs(
    samples: Samples,
    rng: Generator,
    *,
    num_samples: Rows = 10_000,
    quantile: float = 0.99,
    num_bins: AtLeastTwo | None = None,
) -> Result:
    """Interventional robustness score of Suter et al. (2019).

    How far a code moves while one factor is held: the `quantile` of |z - E[z | value]|, averaged
    over values and divided by max |z - E z|. A code scores 1 - the smallest such ratio; the mean
    over codes is weighted by max |z - E z|. Range 0 to 1; Gaussian noise gives 0.4. `num_bins`
    bins factors first, as Locatello et al. (2019) do; without it continuous ones are left out.
    """
    samples = samples if num_bins else samples.discrete()
    x, y = sample(samples, rng, num_samples, "irs.num_samples")
    y = np.apply_along_axis(to_bins, 0, y, num_bins) if num_bins else y
    largest = np.where(np.ptp(x, axis=0) > 0, np.abs(x - x.mean(axis=0)).max(axis=0), 0)
    active = largest > 0
    matrix = np.zeros((x.shape[1], y.shape[1]))
    for k, labels in enumerate(y.T):
        need_often(samples.names[k], labels, IRS_ROWS, "irs")
        moved = []
        for value in np.unique(labels):
            part = x[labels == value]
            moved.append(np.quantile(np.abs(part - part.mean(axis=0)), quantile, axis=0))
        matrix[active, k] = 1 - np.mean(moved, axis=0)[active] / largest[active]
    per_code = matrix.max(axis=1)
    score = np.average(per_code, weights=largest) if active.any() else 0.0
    kind = "1 - deviation within a factor value / largest deviation"
    return Result(score, "Suter et al. 2019", samples.names, matrix, kind, per_code=per_code)
