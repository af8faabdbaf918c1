"""Second opinion: our scores beside those of the code of Locatello et al. (2019), same codes.

Both draw their own rows, so means over seeds are compared, within four standard errors of their
difference (and 0.003, for scores that hardly vary).
"""

import importlib
import math
import sys
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from data import FactorGrid
from metrics import METRICS, as_samples
from tests.test_metrics import DSPRITES

pytestmark = pytest.mark.slow
# Fewer trees, one a value, on so many rows that the reference, which draws with replacement, tests
# on hardly any row that it was trained on.
SMALL = FactorGrid(("shape", "scale", "hue", "tilt", "posX", "posY"), (3, 4, 4, 7, 10, 10))
RIDGEWAY = "modularity_explicitness.compute_modularity_explicitness"
VOTES, ROWS = {"batch_size": 64, "num_eval": 5000}, {"batch_size": 10_000, "num_test": 5000}
VARIANCE = {"num_variance_estimate": 10_000}
REFERENCE = {  # our name -> function, key of its score, settings
    "beta_vae": ("beta_vae.compute_beta_vae_sklearn", "eval_accuracy", VOTES),
    "factor_vae": ("factor_vae.compute_factor_vae", "eval_accuracy", VOTES | VARIANCE),
    "mig": ("mig.compute_mig", "discrete_mig", {"batch_size": 10_000}),
    "sap": ("sap_score.compute_sap", "SAP_score", ROWS | {"continuous_factors": False}),
    "modularity": (RIDGEWAY, "modularity_score", ROWS),
    "explicitness": (RIDGEWAY, "explicitness_score_test", ROWS),
    "irs": ("irs.compute_irs", "IRS", {"batch_size": 10_000}),
}
DCI = ("disentanglement", "completeness", "informativeness_test")


class GridData:
    """A full row-major grid as the reference's data set; an observation is its row number."""

    def __init__(self, sizes):
        self.sizes, self.num_factors = np.array(sizes), len(sizes)

    def sample_factors(self, num, random_state):
        return random_state.randint(self.sizes, size=(num, self.num_factors))

    def sample_observations_from_factors(self, factors, random_state):
        return np.ravel_multi_index(tuple(factors.T), self.sizes)

    def sample(self, num, random_state):
        factors = self.sample_factors(num, random_state)
        return factors, self.sample_observations_from_factors(factors, random_state)

    def sample_observations(self, num, random_state):
        return self.sample(num, random_state)[1]


@pytest.fixture(scope="module")
def reference():
    """Function(path, codes, sizes, seed, settings) -> scores by the reference's metric modules.

    They need NumPy and scikit-learn only, once stand-ins replace what else they import.
    """
    if importlib.util.find_spec("disentanglement_lib") is None:
        pytest.skip("needs the reference: pip install --no-deps disentanglement-lib==1.5")
    gin = SimpleNamespace(configurable=lambda *_, **__: lambda function: function, REQUIRED=None)
    logging = SimpleNamespace(info=lambda *_: None)
    stand_ins = {"gin": gin, "gin.tf": gin, "absl": SimpleNamespace(logging=logging)}
    stand_ins |= {"six": SimpleNamespace(moves=None), "six.moves": SimpleNamespace(range=range)}
    names = {path.split(".")[0] for path, *_ in REFERENCE.values()} | {"dci", "utils"}
    package = "disentanglement_lib.evaluation.metrics"
    with mock.patch.dict(sys.modules, stand_ins):
        code = {name: importlib.import_module(f"{package}.{name}") for name in names}
    code["utils"].make_discretizer = partial(code["utils"]._histogram_discretize, num_bins=20)
    code["factor_vae"]._prune_dims = partial(code["factor_vae"]._prune_dims, threshold=0.05)

    def score(path, codes, sizes, seed, settings):
        name, function = path.split(".")
        draws, rng = {"num_train": 10_000} | settings, np.random.RandomState(seed)
        metric = getattr(code[name], function)
        return metric(GridData(sizes), lambda rows: codes[rows], rng, **draws)

    return score


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


@pytest.mark.parametrize("name", REFERENCE)
def test_same_mean_as_the_reference(name, reference):
    codes, ours, theirs = entangled(DSPRITES), [], []
    samples, (path, key, draws) = as_samples(codes, DSPRITES), REFERENCE[name]
    settings = {"num_bins": 20} if name == "irs" else {}  # the reference puts 40 values in 20 bins
    for seed in range(5):
        ours.append(METRICS[name](samples, np.random.default_rng(seed), **settings).score)
        theirs.append(reference(path, codes, DSPRITES.sizes, seed, draws)[key])
    assert_same_mean(ours, theirs)


def test_same_mean_as_the_reference_dci(reference):
    codes, ours, theirs = entangled(SMALL), [], []
    samples, draws = as_samples(codes, SMALL), {"num_train": 400, "num_test": 400}
    for seed in range(3):
        results = METRICS["dci"](samples, np.random.default_rng(seed), **draws)
        ours.append([result.score for result in results.values()])
        scores = reference("dci.compute_dci", codes, SMALL.sizes, seed, draws | {"batch_size": 400})
        theirs.append([scores[key] for key in DCI])
    for aspect in range(3):
        assert_same_mean([s[aspect] for s in ours], [s[aspect] for s in theirs])
