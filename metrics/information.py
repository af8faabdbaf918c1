"""Metrics on the information that codes carry, in nats."""

import math

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from sklearn.feature_selection import mutual_info_classif

from metrics.result import Result, by_code, by_name
from metrics.samples import (
    AtLeastOne,
    AtLeastTwo,
    Samples,
    as_logvar,
    as_samples,
    need,
    need_at_least,
    need_discrete,
    need_often,
    sample,
    standardise,
    to_bins,
    to_labels,
)

STEPS_PER_STD = 8  # grid points of the density of a code per standard deviation of its posterior
MIN_STD = 2**-12  # smallest posterior standard deviation, as a share of the extent of the code


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


def _binned(samples: Samples, rng, num_samples: int, num_bins: int):
    """Mutual information (D, K) of binned codes with factors, and factor entropies (K,)."""
    x, y = sample(samples, rng, num_samples)
    labels = to_labels(samples, y, num_bins)
    info = mutual_information(to_bins(x, num_bins), labels)
    return info, np.array([entropy(np.bincount(column)) for column in labels.T])


def top_gap(matrix: np.ndarray) -> np.ndarray:
    """Largest minus second largest entry of each column of `matrix` (D, K), (K,)."""
    need(len(matrix) > 1, "a gap needs two codes, not 1")
    top = np.sort(matrix, axis=0)
    return top[-1] - top[-2]


def mig(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_samples: AtLeastTwo = 10_000,
    num_bins: AtLeastTwo = 20,
) -> Result:
    """Mutual information gap of Chen et al. (2018, section 4) by the protocol of the 2019 study.

    Mean codes in `num_bins` equal bins; the gap between the two codes that know most of a
    factor, over the factor's entropy in the sample, averaged over factors. Range 0 ... 1, chance
    about 0, but the bins cap it: the true factors of dSprites reach .8955. Not comparable with
    `mig_chen`. Continuous factors are binned like codes. The matrix is the information over
    the factor's entropy. Raises ValueError for a single code, which leaves no gap.
    """
    samples = as_samples(codes, factors)
    info, entropies = _binned(samples, rng, num_samples, num_bins)
    gaps = top_gap(info / entropies)
    return Result(
        score=gaps.mean(),
        protocol="Locatello et al. 2019, binned mean codes",
        per_factor=by_name(samples.names, gaps),
        matrix=info / entropies,
        matrix_kind="mutual information / factor entropy",
        factors=samples.names,
        settings={"num_samples": num_samples, "num_bins": num_bins},
    )


def modularity(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_samples: AtLeastTwo = 10_000,
    num_bins: AtLeastTwo = 20,
) -> Result:
    """Modularity of Ridgeway & Mozer (2018, section 3): does a code know one factor only.

    1 - sum of the other squared informations / ((K - 1) largest squared information), averaged
    over all D codes. As in the reference nothing is pruned, so a dead code with a little noise
    counts as much as a live one (pure noise gives anything near .7) and an exactly constant
    code counts 0. Range 0 ... 1. The matrix is the information in nats. Raises ValueError for a
    single factor.
    """
    samples = as_samples(codes, factors)
    need(len(samples.names) > 1, "modularity needs two factors, not 1")
    info, _ = _binned(samples, rng, num_samples, num_bins)
    squared, largest = info**2, (info**2).max(axis=1)
    others = (squared.sum(axis=1) - largest) / (len(samples.names) - 1)
    per_code = np.where(largest > 0, 1 - others / np.where(largest > 0, largest, 1), 0)
    return Result(
        score=per_code.mean(),
        protocol="Ridgeway & Mozer 2018, binned mean codes, all codes",
        per_code=by_code(per_code),
        matrix=info,
        matrix_kind="mutual information / nats",
        factors=samples.names,
        settings={"num_samples": num_samples, "num_bins": num_bins},
    )


def mutual_info_score(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_samples: AtLeastTwo = 10_000,
    num_bins: AtLeastTwo = 20,
) -> Result:
    """Mean mutual information in nats of two different binned codes (Locatello et al. 2019).

    Unsupervised; LOWER is better, 0 for independent codes (below .02 with the default sizes; more
    where there are few different images).
    Raises ValueError for a single code.
    """
    samples = as_samples(codes, factors)
    num_codes = samples.codes.shape[1]
    need(num_codes > 1, "mutual_info_score needs two codes, not 1")
    bins = to_bins(sample(samples, rng, num_samples)[0], num_bins)
    info = mutual_information(bins, bins) * (1 - np.eye(num_codes))
    return Result(
        score=info.sum() / (num_codes**2 - num_codes),
        protocol="Locatello et al. 2019, lower is better",
        per_code=by_code(info.sum(axis=1) / (num_codes - 1)),
        settings={"num_samples": num_samples, "num_bins": num_bins},
    )


def gaussian_total_correlation(
    codes, factors, rng: np.random.Generator, *, num_samples: AtLeastTwo = 10_000
) -> Result:
    """Total correlation in nats of a Gaussian with the covariance of the codes (same study).

    Unsupervised; LOWER is better, 0 ... infinity; D (D - 1) / (4 num_samples) for independent
    codes. Constant codes are independent of everything and left out. Raises ValueError if codes are
    linearly dependent, where it is infinite.
    """
    samples = as_samples(codes, factors)
    x, _ = sample(samples, rng, num_samples)
    x = standardise(x[:, np.ptp(x, axis=0) > 0])
    correlation = x.T @ x / len(x)
    need(
        np.linalg.matrix_rank(correlation) == x.shape[1],
        "codes are linearly dependent: their Gaussian total correlation is infinite",
    )
    return Result(
        score=max(0.0, -0.5 * np.linalg.slogdet(correlation)[1]),
        protocol="Locatello et al. 2019, lower is better",
        settings={"num_samples": num_samples, "active_codes": x.shape[1]},
    )


def mig_chen(
    codes,
    factors,
    rng: np.random.Generator | None = None,
    *,
    logvar=None,
    without: tuple[str, ...] = ("shape",),
) -> Result:
    """Mutual information gap of Chen et al. (2018, section 4) by the authors' own protocol.

    The information of a *sampled* code with a factor is H(z) - mean H(z | value), where z follows
    the mixture of all posteriors N(codes, exp(logvar)), or of those with that value; the gap of
    the two largest, over the factor's entropy (log(#values) on a grid), averaged over the factors
    that are not in `without`. The authors estimate the entropies from 10,000 draws; we integrate
    the mixture's density numerically (error below 1e-3 nats), so nothing is random. All samples are
    used.
    Posterior standard deviations below 1/4096 of the extent of a code (range of its means plus
    largest deviation) count as that. Range 0 ... 1.
    logvar: (N, D) log-variances. Raises ValueError without them, for another shape and for
    continuous factors.
    """
    need(logvar is not None, "mig_chen needs the posterior: log-variances `logvar` like codes")
    samples = as_samples(codes, factors)
    logvar = as_logvar(logvar, samples.codes)
    need_discrete(samples, "mig_chen", "bin it or leave it out")
    kept = [k for k, name in enumerate(samples.names) if name not in without]
    need(bool(kept), f"mig_chen needs a factor besides {', '.join(without)}")
    values = samples.values(np.arange(len(samples)))
    labels = [np.unique(values[:, k], return_inverse=True)[1] for k in kept]
    info = np.empty((samples.codes.shape[1], len(kept)))
    for d in range(len(info)):
        mean = np.asarray(samples.codes[:, d], dtype=np.float64)
        std = np.exp(0.5 * np.asarray(logvar[:, d], dtype=np.float64))
        info[d] = _posterior_information(mean, std, labels)
    known = np.maximum(info, 0) / [entropy(np.bincount(y)) for y in labels]
    names, gaps = tuple(samples.names[k] for k in kept), top_gap(known)
    return Result(
        score=gaps.mean(),
        protocol=f"Chen et al. 2018, sampled codes, {len(kept)} factors",
        per_factor=by_name(names, gaps),
        matrix=known,
        matrix_kind="mutual information / entropy of the factor",
        factors=names,
        settings={"factors": list(names)},
    )


def _posterior_information(mean: np.ndarray, std: np.ndarray, labels) -> np.ndarray:
    """H(z) - H(z | labels) in nats for each labelling; z ~ mixture of N(mean, std), all (N,).

    The mixture's density is a sum, over classes of nearly equal std, of a histogram of means
    convolved with a Gaussian, done in Fourier space. Both the cell of a mean and the class of
    a std are shared between two neighbours so that mean and variance are kept.
    """
    std = np.maximum(std, MIN_STD * (np.ptp(mean) + std.max()) or 1.0)
    step, margin = std.min() / STEPS_PER_STD, 7 * std.max()
    size = next_fast_len(math.ceil((np.ptp(mean) + 2 * margin) / step) + 2, real=True)
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
    info = np.empty(len(labels))
    for k, label in enumerate(labels):
        counts, start = np.bincount(label), label[order] * size + cell
        waves = np.zeros((len(counts), len(frequency)), dtype=np.complex128)
        for c in np.flatnonzero(np.diff(bounds)):
            mine = slice(bounds[c], bounds[c + 1])  # between classes[c] and classes[c + 1]
            for to, weight in ((c, 1 - share[mine]), (c + 1, share[mine])):
                heights = np.bincount(start[mine], weight * (1 - part[mine]), len(counts) * size)
                heights += np.bincount(start[mine] + 1, weight * part[mine], len(heights))
                waves += rfft(heights.reshape(-1, size)) * blur[to]
        density = np.maximum(irfft(waves, size), 0)  # (values, size), sums to the counts
        within = [entropy(row) for row in density]
        info[k] = entropy(density.sum(axis=0)) - np.average(within, weights=counts)
    return info


def infom(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_samples: AtLeastTwo = 10_000,
    neighbours: AtLeastOne = 10,
) -> Result:
    """InfoM, modularity of Hsu et al. (2023): is a code about one factor only.

    (mean over active codes of max/sum over the K factors of the normalised information - 1/K) /
    (1 - 1/K). The information is the k-nearest-neighbour estimate; a code is active if its
    range exceeds 1/20 of the largest. An active code without any information counts as
    spread evenly (0/0 in the reference). Continuous factors are binned in 20. Range 0 ... 1, but
    pure noise is well above 0, as its max/sum is that of K small errors. Raises ValueError
    for a single factor, if no code varies and where a value of a discrete factor has no more
    samples than `neighbours`.
    """
    samples = as_samples(codes, factors)
    need(len(samples.names) > 1, "infom needs two factors, not 1")
    known, active, detail = _neighbour_information(samples, rng, num_samples, neighbours)
    shares = _largest_share(known)
    score = _above_even(shares[active].mean(), len(samples.names))
    return Result(score, per_code=by_code(np.where(active, shares, 0)), **detail)


def infoc(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_samples: AtLeastTwo = 10_000,
    neighbours: AtLeastOne = 10,
) -> Result:
    """InfoC, compactness of Hsu et al. (2023): is a factor in one code only.

    As `infom` with codes and factors exchanged: mean over factors of max/sum over the active
    codes. Raises ValueError unless two codes are active.
    """
    samples = as_samples(codes, factors)
    known, active, detail = _neighbour_information(samples, rng, num_samples, neighbours)
    need(active.sum() > 1, "infoc needs two active codes, not 1")
    shares = _largest_share(known[active].T)
    score = _above_even(shares.mean(), active.sum())
    return Result(score, per_factor=by_name(samples.names, shares), **detail)


def _neighbour_information(samples: Samples, rng, num_samples: int, neighbours: int):
    """Information of codes with factors over the factor's entropy (D, K), which codes (D,) are
    active, and the detail of a Result; constant codes carry none."""
    need_at_least(1, neighbours=neighbours)
    x, y = sample(samples, rng, num_samples, copies=False)  # a copy is no neighbour
    for k in np.flatnonzero(~np.array(samples.continuous)):
        need_often(samples.names[k], y[:, k], neighbours + 1)
    extent = np.ptp(x, axis=0)
    need(extent.any(), "no code varies")
    active, moving = extent > extent.max() / 20, extent > 0
    x, seed = standardise(x[:, moving]), int(rng.integers(2**31))  # seed: breaks ties of codes
    known = np.zeros((len(extent), y.shape[1]))
    for k, label in enumerate(to_labels(samples, y, num_bins=20).T):
        known[moving, k] = mutual_info_classif(
            x, label, discrete_features=False, n_neighbors=neighbours, random_state=seed
        ) / entropy(np.bincount(label))
    settings = {"num_samples": num_samples, "neighbours": neighbours}
    detail = {
        "protocol": "Hsu et al. 2023, nearest-neighbour information",
        "matrix": known,
        "matrix_kind": "mutual information / factor entropy",
        "factors": samples.names,
        "settings": settings | {"active_codes": int(active.sum())},
    }
    return known, active, detail


def _largest_share(known: np.ndarray) -> np.ndarray:
    """max/sum of each row, 1/width for a row of zeros."""
    total = known.sum(axis=1)
    even = 1 / known.shape[1]
    return np.where(total > 0, known.max(axis=1) / np.where(total > 0, total, 1), even)


def _above_even(share: float, num: int) -> float:
    """Rescale a share so that an even spread over `num` gives 0."""
    return (share - 1 / num) / (1 - 1 / num)
