"""Metrics on the mutual information of codes with factors and with each other, in nats."""

import math

import numpy as np
from numpy.random import Generator
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from sklearn.feature_selection import mutual_info_classif

from metrics.draw import AtLeastOne, AtLeastTwo, Rows, need_often, sample, standardise, to_labels
from metrics.samples import Result, Samples, need, to_bins

STEPS_PER_STD = 8  # grid points of a code's density in one standard deviation of its posterior
MIN_STD = 2**-12  # smallest posterior standard deviation, as a share of the extent of the code
SHARE = "mutual information / factor entropy"
HSU = "Hsu et al. 2023, nearest-neighbour information"


def mig(
    samples: Samples, rng: Generator, *, num_samples: Rows = 10_000, num_bins: AtLeastTwo = 20
) -> Result:
    """Mutual information gap of Chen et al. (2018, section 4), as in Locatello et al. (2019).

    The gap of the two binned codes with most information on a factor, over the factor's entropy.
    Range 0 to 1, chance about 0. With bins the true factors of dSprites reach 0.8955.
    """
    info, entropies = _binned_information(samples, rng, num_samples, num_bins, "mig")
    protocol = "Locatello et al. 2019, binned mean codes"
    return gap_result(info / entropies, SHARE, samples.names, protocol)


def mig_chen(samples: Samples, rng: Generator, *, without: tuple[str, ...] = ("shape",)) -> Result:
    """Mutual information gap of Chen et al. (2018, section 4) by the authors' own protocol.

    As `mig`, with the information H(z) - mean H(z | v) of a sampled code z with a factor v: z
    follows the mixture of all posteriors N(codes, exp(logvar)), or of those with one value of v.
    The authors draw 10,000 z; we integrate (error below 0.001 nats). Range 0 to 1, chance 0.
    """
    need(samples.logvar is not None, "mig_chen needs log-variances of a posterior (logvar)")
    samples = samples.discrete()
    columns = [k for k, name in enumerate(samples.names) if name not in without]
    names = tuple(samples.names[k] for k in columns)
    labels = [np.unique(samples.factors[:, k], return_inverse=True)[1] for k in columns]
    info = np.empty((samples.num_codes, len(columns)))
    for d in range(samples.num_codes):
        std = np.exp(0.5 * samples.logvar[:, d])
        info[d] = _posterior_information(samples.codes[:, d], std, labels)
    share = np.maximum(info, 0) / [entropy(np.bincount(label)) for label in labels]
    return gap_result(share, SHARE, names, f"Chen et al. 2018, sampled codes, {len(names)} factors")


def modularity(
    samples: Samples, rng: Generator, *, num_samples: Rows = 10_000, num_bins: AtLeastTwo = 20
) -> Result:
    """Modularity of Ridgeway & Mozer (2018, section 3): does a code depend on one factor only.

    A code scores 1 - (sum of its other squared informations) / ((K - 1) * the largest squared one),
    a constant one 0; the mean is over all codes. Range 0 to 1, but noise scores about 0.7.
    """
    need(len(samples.names) > 1, "modularity needs two factors, not 1")
    info, _ = _binned_information(samples, rng, num_samples, num_bins, "modularity")
    squared, largest = info**2, (info**2).max(axis=1)
    others = (squared.sum(axis=1) - largest) / (len(samples.names) - 1)
    per_code = 1 - np.divide(others, largest, out=np.ones_like(others), where=largest > 0)
    protocol = "Ridgeway & Mozer 2018, binned mean codes, all codes"
    kind = "mutual information / nats"
    return Result(per_code.mean(), protocol, samples.names, info, kind, per_code=per_code)


def infom(
    samples: Samples, rng: Generator, *, num_samples: Rows = 10_000, neighbours: AtLeastOne = 10
) -> Result:
    """InfoM, modularity of Hsu et al. (2023): is a code about one factor only.

    For each active code, the largest share that one factor has in its information on all factors;
    the mean over codes is rescaled so that even shares give 0. A code is active if its range
    exceeds 1/20 of the largest. Range 0 to 1; noise is above 0.
    """
    need(len(samples.names) > 1, "infom needs two factors, not 1")
    info, active = _nearest_information(samples, rng, num_samples, neighbours, "infom")
    per_code = np.zeros(len(info))
    per_code[active], score = _largest_shares(info[active])
    return Result(score, HSU, samples.names, info, SHARE, per_code=per_code)


def infoc(
    samples: Samples, rng: Generator, *, num_samples: Rows = 10_000, neighbours: AtLeastOne = 10
) -> Result:
    """InfoC, compactness of Hsu et al. (2023): `infom` with codes and factors exchanged."""
    info, active = _nearest_information(samples, rng, num_samples, neighbours, "infoc")
    need(active.sum() > 1, "infoc needs two active codes, not 1")
    per_factor, score = _largest_shares(info[active].T)
    return Result(score, HSU, samples.names, info, SHARE, per_factor=per_factor)


def mutual_info_score(
    samples: Samples, rng: Generator, *, num_samples: Rows = 10_000, num_bins: AtLeastTwo = 20
) -> Result:
    """Mean mutual information in nats of two different binned codes (Locatello et al. 2019).

    Lower is better; 0 for independent codes, up to 0.02 by chance.
    """
    need(samples.num_codes > 1, "mutual_info_score needs two codes, not 1")
    x, _ = sample(samples, rng, num_samples, "mutual_info_score.num_samples")
    bins = np.apply_along_axis(to_bins, 0, x, num_bins)
    info = mutual_information(bins, bins) * (1 - np.eye(samples.num_codes))
    score = info.sum() / (samples.num_codes**2 - samples.num_codes)
    return Result(score, "Locatello et al. 2019, lower is better")


def gaussian_total_correlation(
    samples: Samples, rng: Generator, *, num_samples: Rows = 10_000
) -> Result:
    """Total correlation in nats of a Gaussian with the covariance of the codes (same study).

    Constant codes are left out. Lower is better; D (D - 1) / (4 num_samples) by chance.
    """
    x, _ = sample(samples, rng, num_samples, "gaussian_total_correlation.num_samples")
    x = standardise(x[:, np.ptp(x, axis=0) > 0])
    correlation = x.T @ x / len(x)
    need(np.linalg.matrix_rank(correlation) == x.shape[1], "the codes are linearly dependent")
    score = max(0.0, -0.5 * np.linalg.slogdet(correlation)[1])
    return Result(score, "Locatello et al. 2019, lower is better")


def mutual_information(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Plug-in mutual information (D, K) in nats of the labels a (n, D) with the labels b (n, K)."""
    sizes = b.max(axis=0) + 1
    info = np.empty((a.shape[1], b.shape[1]))
    for d, left in enumerate(a.T):
        for k, right in enumerate(b.T):
            cells = (left.max() + 1) * sizes[k]
            joint = np.bincount(left * sizes[k] + right, minlength=cells).reshape(-1, sizes[k])
            info[d, k] = entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)
    return np.where(info > 1e-12, info, 0)  # rounding is not information


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution with these counts (any shape)."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def gap_result(matrix: np.ndarray, kind: str, factors: tuple[str, ...], protocol: str) -> Result:
    """The gap of the two largest entries of each column of `matrix` (D, K), averaged over K."""
    need(len(matrix) > 1, "a gap needs two codes, not 1")
    top = np.sort(matrix, axis=0)
    gaps = top[-1] - top[-2]
    return Result(gaps.mean(), protocol, factors, matrix, kind, per_factor=gaps)


def _binned_information(samples: Samples, rng, num_samples: int, num_bins: int, metric: str):
    """Mutual information (D, K) of binned codes with factors, and factor entropies (K,)."""
    x, y = sample(samples, rng, num_samples, f"{metric}.num_samples")
    labels = to_labels(samples, y, num_bins)
    info = mutual_information(np.apply_along_axis(to_bins, 0, x, num_bins), labels)
    return info, np.array([entropy(np.bincount(column)) for column in labels.T])


def _nearest_information(samples: Samples, rng, num_samples: int, neighbours: int, metric: str):
    """Mutual information over the factor's entropy (D, K), and which codes (D,) are active."""
    # A copy of a row would be its own nearest neighbour, so the rows are distinct.
    x, y = sample(samples, rng, num_samples, f"{metric}.num_samples", distinct=True)
    for k in np.flatnonzero(~samples.continuous):
        need_often(samples.names[k], y[:, k], neighbours + 1, f"{metric}.neighbours = {neighbours}")
    extent = np.ptp(x, axis=0)
    need(extent.any(), "no code varies")
    varies = extent > 0
    x, seed = standardise(x[:, varies]), int(rng.integers(2**31))  # the seed breaks ties of codes
    info = np.zeros((len(extent), y.shape[1]))
    for k, label in enumerate(to_labels(samples, y, num_bins=20).T):
        nats = mutual_info_classif(x, label, n_neighbors=neighbours, random_state=seed)
        info[varies, k] = nats / entropy(np.bincount(label))
    return info, extent > extent.max() / 20


def _largest_shares(info: np.ndarray) -> tuple[np.ndarray, float]:
    """Largest entry over the sum of each row, and the mean rescaled so that even rows give 0."""
    even, total = 1 / info.shape[1], info.sum(axis=1)
    shares = np.full(len(info), even)
    np.divide(info.max(axis=1), total, out=shares, where=total > 0)
    return shares, (shares.mean() - even) / (1 - even)


def _posterior_information(mean: np.ndarray, std: np.ndarray, labels) -> np.ndarray:
    """H(z) - H(z | labels) in nats for each labelling (N,); z ~ mixture of N(mean, std), both (N,).

    The density of the mixture is a sum, over classes of nearly equal std, of a histogram of means
    convolved with a Gaussian, which is a product of Fourier transforms.
    """
    # Grid of z: fine enough for the narrowest posterior, wide enough for the widest.
    std = np.maximum(std, MIN_STD * (np.ptp(mean) + std.max()) or 1.0)
    step, margin = std.min() / STEPS_PER_STD, 7 * std.max()
    size = next_fast_len(math.ceil((np.ptp(mean) + 2 * margin) / step) + 2, real=True)

    # Share each mean between two cells and each variance between two classes: moments stay exact.
    classes = np.geomspace(std.min(), std.max(), 2 + int(10 * np.log(std.max() / std.min()))) ** 2
    upper = np.clip(np.searchsorted(classes, std**2), 1, len(classes) - 1)
    order = np.argsort(upper, kind="stable")
    mean, variance, upper = mean[order], std[order] ** 2, upper[order]
    cell, part = np.divmod((mean - mean.min() + margin) / step, 1)
    cell = cell.astype(np.int64)
    width = np.maximum(np.diff(classes)[upper - 1], 1e-300)  # 0 if all deviations are equal
    share = np.clip((variance - classes[upper - 1]) / width, 0, 1)
    bounds = np.searchsorted(upper, np.arange(1, len(classes) + 1))
    frequency = (2 * np.pi * rfftfreq(size, step)) ** 2
    blur = np.exp(-0.5 * (classes[:, None] - step**2 / 6) * frequency)  # cells add step^2/6

    # One density for each value of a factor; their sum is that of the mixture of all.
    info = np.empty(len(labels))
    for k, label in enumerate(labels):
        counts, start = np.bincount(label), label[order] * size + cell
        waves = np.zeros((len(counts), len(frequency)), dtype=np.complex128)
        for c in np.flatnonzero(np.diff(bounds)):
            rows = slice(bounds[c], bounds[c + 1])  # variances between classes[c] and [c + 1]
            for to, weight in ((c, 1 - share[rows]), (c + 1, share[rows])):
                heights = np.bincount(start[rows], weight * (1 - part[rows]), len(counts) * size)
                heights += np.bincount(start[rows] + 1, weight * part[rows], len(heights))
                waves += rfft(heights.reshape(-1, size)) * blur[to]
        density = np.maximum(irfft(waves, size), 0)  # (values, size), sums to the counts
        within = [entropy(row) for row in density]
        info[k] = entropy(density.sum(axis=0)) - np.average(within, weights=counts)
    return info
