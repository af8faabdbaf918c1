"""The metric code of the 2019 study (`disentanglement-lib` 1.5), for tests and timings only.

    pip install --no-deps disentanglement-lib==1.5

A module, no script: benchmarks/metrics.py times it, tests compare with it.

Its metric modules need NumPy and scikit-learn once the deep-learning and configuration modules
that they name are replaced by stand-ins; nothing else of it is imported.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from functools import partial

import numpy as np

MODULES = ("beta_vae", "factor_vae", "mig", "sap_score", "dci", "modularity_explicitness", "irs")


class GridData:
    """A full row-major grid as the reference's data set; an observation is its row number."""

    def __init__(self, sizes):
        self.sizes = np.array(sizes)
        self.num_factors = len(sizes)

    def sample_factors(self, num, random_state):
        return random_state.randint(self.sizes, size=(num, self.num_factors))

    def sample_observations_from_factors(self, factors, random_state):
        return np.ravel_multi_index(tuple(factors.T), self.sizes)

    def sample(self, num, random_state):
        factors = self.sample_factors(num, random_state)
        return factors, self.sample_observations_from_factors(factors, random_state)

    def sample_observations(self, num, random_state):
        return self.sample(num, random_state)[1]


def _configurable(*_args, **_settings):
    return lambda function: function


def load_reference() -> dict[str, Callable] | None:
    """Key of METRICS -> function(codes, sizes, seed, num_train, num_test) -> score, or None.

    The settings are those of the study; the sample sizes are given. None if the package is not
    installed. dci gives (disentanglement, completeness, informativeness).
    """
    if importlib.util.find_spec("disentanglement_lib") is None:
        return None
    gin = types.SimpleNamespace(configurable=_configurable, REQUIRED=None)
    logging = types.SimpleNamespace(info=lambda *_args: None)
    stand_ins = {
        "gin": gin,
        "gin.tf": gin,
        "absl": types.SimpleNamespace(logging=logging),
        "six": types.SimpleNamespace(moves=None),
        "six.moves": types.SimpleNamespace(range=range),
    }
    with _modules(stand_ins):
        package = "disentanglement_lib.evaluation.metrics"
        code = {name: importlib.import_module(f"{package}.{name}") for name in MODULES}
        utils = importlib.import_module(f"{package}.utils")
    utils.make_discretizer = partial(utils._histogram_discretize, num_bins=20)
    prune = code["factor_vae"]._prune_dims
    code["factor_vae"]._prune_dims = partial(prune, threshold=0.05)
    beta = code["beta_vae"].compute_beta_vae_sklearn
    factor = partial(code["factor_vae"].compute_factor_vae, num_variance_estimate=10_000)
    sap = partial(code["sap_score"].compute_sap, continuous_factors=False)
    ridgeway = code["modularity_explicitness"].compute_modularity_explicitness
    dci = ("disentanglement", "completeness", "informativeness_test")
    calls = {
        "beta_vae": (beta, 64, "num_eval", "eval_accuracy"),
        "factor_vae": (factor, 64, "num_eval", "eval_accuracy"),
        "mig": (code["mig"].compute_mig, 10_000, None, "discrete_mig"),
        "sap": (sap, 10_000, "num_test", "SAP_score"),
        "dci": (code["dci"].compute_dci, 10_000, "num_test", dci),
        "modularity": (ridgeway, 10_000, "num_test", "modularity_score"),
        "explicitness": (ridgeway, 10_000, "num_test", "explicitness_score_test"),
        "irs": (code["irs"].compute_irs, 10_000, None, "IRS"),
    }
    return {key: partial(_score, *call) for key, call in calls.items()}


@contextlib.contextmanager
def _modules(stand_ins: dict):
    """`stand_ins` in sys.modules, and what was there before put back."""
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _score(function, batch_size, test_name, keys, codes, sizes, seed, num_train, num_test):
    test = {} if test_name is None else {test_name: num_test}
    scores = function(
        GridData(sizes),
        lambda rows: codes[rows],
        np.random.RandomState(seed),
        num_train=num_train,
        batch_size=batch_size,
        **test,
    )
    return scores[keys] if isinstance(keys, str) else tuple(scores[key] for key in keys)
