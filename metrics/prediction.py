"""Metrics on how well a model predicts factors from codes."""

import numpy as np
from joblib import Parallel, delayed
from numpy.random import Generator
from scipy.stats import entropy
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.svm import LinearSVC

from metrics.draw import Rows, sample, standardise, train_test
from metrics.information import gap_result
from metrics.samples import Result, Samples, need

EXTRA_TREES = {"max_depth": 10, "max_features": None}  # importances closest to boosted trees


def sap(
    samples: Samples, rng: Generator, *, num_train: Rows = 10_000, num_test: Rows = 5_000
) -> Result:
    """SAP score of Kumar et al. (2018, section 3) for discrete factors.

    Test accuracy of a linear support vector machine (C = 0.01, balanced classes) on each single
    code; the gap of the two best codes, averaged over factors. Range 0 to 1, chance about 0. The
    second best is at chance, not at 0: the true factors of dSprites reach about 0.24.
    """
    samples = samples.discrete()
    (x, y), (x_test, y_test) = train_test(samples, rng, "sap", num_train, num_test)
    accuracy = np.empty((x.shape[1], y.shape[1]))
    for d, k in np.ndindex(accuracy.shape):
        # dual=False: the optimum, without the random coordinate order of the dual solver
        model = LinearSVC(C=0.01, class_weight="balanced", dual=False)
        model.fit(x[:, d : d + 1], y[:, k])
        accuracy[d, k] = model.score(x_test[:, d : d + 1], y_test[:, k])
    protocol = "Kumar et al. 2018, discrete, settings of Locatello et al. 2019"
    return gap_result(accuracy, "accuracy of one code", samples.names, protocol)


def sap_continuous(samples: Samples, rng: Generator, *, num_samples: Rows = 10_000) -> Result:
    """SAP score of Kumar et al. (2018, section 3) for continuous factors.

    Squared correlation of each code with each factor (discrete values count by their number); the
    gap of the two largest, averaged over factors. Range 0 to 1, chance about 0.
    """
    x, y = sample(samples, rng, num_samples, "sap_continuous.num_samples")
    squared = (standardise(x).T @ standardise(y) / num_samples) ** 2
    protocol = "Kumar et al. 2018, continuous"
    return gap_result(squared, "squared correlation", samples.names, protocol)


def explicitness(
    samples: Samples, rng: Generator, *, num_train: Rows = 10_000, num_test: Rows = 5_000
) -> Result:
    """Explicitness of Ridgeway & Mozer (2018, section 3): can factors be read off linearly.

    Area under the ROC curve of multinomial logistic regression on standardised codes, averaged over
    the values of a factor and then over factors. Range 0 to 1, chance 0.5 (not rescaled).
    """
    samples = samples.discrete()
    (x, y), (x_test, y_test) = train_test(samples, rng, "explicitness", num_train, num_test)
    x, x_test = standardise(x), standardise(x_test, like=x)
    areas = []
    for label, label_test in zip(y.T, y_test.T, strict=True):
        model = LogisticRegression().fit(x, label)
        chance, of_values = model.predict_proba(x_test), []
        for c, value in enumerate(model.classes_):
            hits = label_test == value
            if 0 < hits.mean() < 1:
                of_values.append(roc_auc_score(hits, chance[:, c]))
        areas.append(np.mean(of_values))
    protocol = "Ridgeway & Mozer 2018, multinomial, settings of Locatello et al. 2019"
    return Result(np.mean(areas), protocol, samples.names, per_factor=areas)


def infoe(samples: Samples, rng: Generator, *, num_samples: Rows = 10_000) -> Result:
    """InfoE, explicitness of Hsu et al. (2023): linearly usable share of the information.

    1 - H / log(number of values), averaged over factors. H is the mean log loss of multinomial
    logistic regression (no penalty, balanced classes, at most 100 steps) on the standardised codes
    that it was fitted to. Range 0 to 1, chance about 0.
    """
    samples = samples.discrete()
    x, y = sample(samples, rng, num_samples, "infoe.num_samples")
    x = standardise(x)
    shares = []
    for label in y.T:
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100).fit(x, label)
        loss = log_loss(label, model.predict_proba(x))
        shares.append(1 - loss / np.log(len(model.classes_)))
    return Result(np.mean(shares), "Hsu et al. 2023", samples.names, per_factor=shares)


def dci(
    samples: Samples, rng: Generator, *, num_train: Rows = 10_000, num_test: Rows = 5_000
) -> dict[str, Result]:
    """Disentanglement, completeness and informativeness of Eastwood & Williams (2018, section 2).

    Trees give the importance of every code for each factor. Disentanglement is 1 - the entropy of
    a code over factors (base K), weighted by the code's importance; completeness the same of a
    factor over codes (base D); informativeness the mean test accuracy. Boosted trees take minutes.
    Range 0 to 1, chance near 0 for the first two. Compare equal numbers of rows only.
    """
    trees = GradientBoostingClassifier()
    return _dci(samples, rng, "dci", "gradient boosting", trees, num_train, num_test)


def dci_fast(
    samples: Samples, rng: Generator, *, num_train: Rows = 10_000, num_test: Rows = 5_000
) -> dict[str, Result]:
    """`dci` with extra trees, which split at random places: seconds, on a scale of its own."""
    trees = ExtraTreesClassifier(**EXTRA_TREES)
    return _dci(samples, rng, "dci_fast", "extra trees", trees, num_train, num_test)


def _dci(samples: Samples, rng, metric: str, method: str, trees, num_train: int, num_test: int):
    samples = samples.discrete()
    names = samples.names
    need(samples.num_codes > 1 and len(names) > 1, f"{metric} needs two codes and two factors")
    (x, y), (x_test, y_test) = train_test(samples, rng, metric, num_train, num_test)

    # Standardising changes no tree, but trees grow in float32, which rounds large offsets away.
    x, x_test = standardise(x), standardise(x_test, like=x)
    seeds = rng.integers(2**31, size=len(names)).tolist()  # the study does not seed its trees

    def importance(k: int) -> tuple[np.ndarray, float]:
        model = clone(trees).set_params(random_state=seeds[k]).fit(x, y[:, k])
        return model.feature_importances_, model.score(x_test, y_test[:, k])

    # Growing trees holds no lock, so threads run in parallel.
    fits = Parallel(-1, prefer="threads")(delayed(importance)(k) for k in range(len(names)))
    matrix = np.stack([importances for importances, _ in fits], axis=1)
    accuracy = np.array([score for _, score in fits])

    per_code, disentanglement = _concentration(matrix)
    per_factor, completeness = _concentration(matrix.T)
    protocol = f"Eastwood & Williams 2018, {method}, settings of Locatello et al. 2019"
    common = protocol, names, matrix, "importance"
    return {
        "disentanglement": Result(disentanglement, *common, per_code=per_code),
        "completeness": Result(completeness, *common, per_factor=per_factor),
        "informativeness": Result(accuracy.mean(), *common, per_factor=accuracy),
    }


def _concentration(importance: np.ndarray) -> tuple[np.ndarray, float]:
    """1 - entropy of each row, by that of an even one, and the mean weighted by the rows' sums."""
    # 1e-11 as in the study: a row without importance counts as even. Rounding may fall below 0.
    rows = np.maximum(1 - entropy(importance + 1e-11, base=importance.shape[1], axis=1), 0)
    weights = importance.sum(axis=1)
    return rows, float(np.average(rows, weights=weights if weights.any() else None))
