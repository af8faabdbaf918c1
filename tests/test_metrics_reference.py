"""Second opinion: our scores against the code of the 2019 study, run on the same codes.

Both draw their own samples, so means over SEEDS are compared, within four standard errors
of their difference (and .003, for scores that hardly vary).
"""

import math

import numpy as np
import pytest

from benchmarks.reference import load_reference
from data.grid import FactorGrid
from metrics import METRICS, dci

REFERENCE = load_reference()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        REFERENCE is None,
        reason="needs the reference: pip install --no-deps disentanglement-lib==1.5",
    ),
]
SEEDS = range(5)
DSPRITES = FactorGrid(("shape", "scale", "orientation", "posX", "posY"), (3, 6, 40, 32, 32))
# Fewer trees, one a value; still so many images that the reference, which draws with replacement,
# tests on hardly any image that it was trained on.
SMALL = FactorGrid(("shape", "scale", "hue", "tilt", "posX", "posY"), (3, 4, 4, 7, 10, 10))


def entangled(grid: FactorGrid) -> np.ndarray:
    """Codes that every metric scores in between: rotated, bent, noisy, shared and dead ones."""
    f = grid.factors(np.arange(len(grid)))
    noise = np.random.default_rng(0).normal(size=(len(f), 6))
    z = (f - f.mean(axis=0)) / f.std(axis=0)
    angle = 2 * np.pi * f[:, 2] / grid.sizes[2]
    return np.c_[
        z[:, 1] + 0.2 * np.sin(z[:, -1]) + 0.3 * noise[:, 0],
        0.9 * z[:, -1] + 0.4 * z[:, -2] + 0.1 * noise[:, 1],
        0.9 * z[:, -2] - 0.4 * z[:, -1] + 0.1 * noise[:, 2],
        np.sin(2 * angle) * (f[:, 0] != 1) + 0.3 * noise[:, 3],
        0.5 * f[:, 0] + 0.5 * noise[:, 4],
        0.03 * noise[:, 5],
    ]


def assert_same_mean(ours: list[float], theirs: list[float]) -> None:
    error = math.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / len(ours))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=4 * error + 0.003)
    assert 0.05 < np.mean(theirs) < 0.999  # codes that say something about the metric


@pytest.mark.parametrize(
    "metric", ["beta_vae", "factor_vae", "mig", "sap", "modularity", "explicitness", "irs"]
)
def test_same_mean_as_the_reference(metric):
    codes = entangled(DSPRITES)
    settings = {"num_bins": 20} if metric == "irs" else {}  # the reference groups 40 values in 20
    ours = [
        METRICS[metric](codes, DSPRITES, np.random.default_rng(seed), **settings).score
        for seed in SEEDS
    ]
    theirs = [REFERENCE[metric](codes, DSPRITES.sizes, seed, 10_000, 5_000) for seed in SEEDS]
    assert_same_mean(ours, theirs)


def test_same_mean_as_the_reference_dci():
    codes = entangled(SMALL)
    ours, theirs = [], []
    for seed in SEEDS[:3]:
        rng = np.random.default_rng(seed)
        results = dci(codes, SMALL, rng, num_train=400, num_test=400, n_jobs=1)
        ours.append([result.score for result in results.values()])
        theirs.append(REFERENCE["dci"](codes, SMALL.sizes, seed, 400, 400))
    for aspect in range(3):
        assert_same_mean([s[aspect] for s in ours], [s[aspect] for s in theirs])
