"""Metrics on how well codes predict factors: SAP, DCI, explicitness and InfoE."""

import warnings

import numpy as np
from joblib import Parallel, delayed
from scipy.stats import entropy
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.svm import LinearSVC

from metrics.information import top_gap
from metrics.result import Result, by_code, by_name
from metrics.samples import (
    AtLeastOne,
    AtLeastTwo,
    as_samples,
    need,
    need_discrete,
    sample,
    standardise,
    train_test,
)

TREES = {
    # scikit-learn's defaults: 100 rounds of trees of depth 3, one tree a class and round
    "gradient boosting": GradientBoostingClassifier,
    # splits at random places need no sorting; depth 10 over all codes gave importances closest
    # to the boosted ones on entangled test codes (D within .06)
    "extra trees": lambda random_state: ExtraTreesClassifier(
        100, max_depth=10, max_features=None, random_state=random_state
    ),
}


def fit_quietly(model, x: np.ndarray, y: np.ndarray):
    """`model.fit(x, y)`; stopping at the iteration limit is part of the published protocols."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def sap(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_train: AtLeastTwo = 10_000,
    num_test: AtLeastOne = 5_000,
) -> Result:
    """SAP score of Kumar et al. (2018, section 3) for discrete factors.

    Test accuracy of a linear support vector machine (C = .01, balanced classes) on each single
    code, not standardised; the gap of the two best codes, averaged over factors. The second
    best is at the chance level, not at 0: the true factors of dSprites reach about .24. A scale
    of its own, about a tenth of `sap_continuous`. Range 0 ... 1, chance about 0. Raises ValueError
    for a single code and for continuous factors.
    """
    samples = as_samples(codes, factors)
    need_discrete(samples, "sap", "use sap_continuous")
    need(samples.codes.shape[1] > 1, "sap needs two codes for a gap, not 1")
    (x, y), (x_test, y_test) = train_test(samples, rng, num_train, num_test)
    accuracy = np.empty((x.shape[1], y.shape[1]))
    for d in range(len(accuracy)):
        for k in range(y.shape[1]):
            # dual=False: the optimum, without the random coordinate order of the dual solver
            model = LinearSVC(C=0.01, class_weight="balanced", dual=False)
            model = fit_quietly(model, x[:, d : d + 1], y[:, k])
            accuracy[d, k] = model.score(x_test[:, d : d + 1], y_test[:, k])
    return Result(
        score=top_gap(accuracy).mean(),
        protocol="Kumar et al. 2018, discrete, settings of Locatello et al. 2019",
        per_factor=by_name(samples.names, top_gap(accuracy)),
        matrix=accuracy,
        matrix_kind="accuracy of one code",
        factors=samples.names,
        settings={"num_train": num_train, "num_test": num_test},
    )


def sap_continuous(
    codes, factors, rng: np.random.Generator, *, num_samples: AtLeastTwo = 10_000
) -> Result:
    """SAP score of Kumar et al. (2018, section 3) for continuous factors.

    Squared correlation of each code with each factor (discrete values count by their number);
    the gap of the two largest, averaged over factors. Range 0 ... 1, chance about 0. Not comparable
    with `sap`. Raises ValueError for a single code.
    """
    samples = as_samples(codes, factors)
    x, y = sample(samples, rng, num_samples)
    squared = (standardise(x).T @ standardise(y) / num_samples) ** 2
    return Result(
        score=top_gap(squared).mean(),
        protocol="Kumar et al. 2018, continuous",
        per_factor=by_name(samples.names, top_gap(squared)),
        matrix=squared,
        matrix_kind="squared correlation",
        factors=samples.names,
        settings={"num_samples": num_samples},
    )


def dci(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_train: AtLeastTwo = 10_000,
    num_test: AtLeastOne = 5_000,
    trees: str = "gradient boosting",
    n_jobs: int = -1,
) -> dict[str, Result]:
    """Disentanglement, completeness, informativeness of Eastwood & Williams (2018, section 2).

    From the importance of every code for a tree model of each factor: disentanglement is 1 -
    the entropy of a code over factors (base K), weighted by the importance of codes;
    completeness 1 - the entropy of a factor over codes (base D, dead codes too), weighted by
    factors; informativeness the mean test accuracy. Ranges 0 ... 1. Disentanglement of one code
    doubles from 1,000 to 10,000 training samples: compare equal sizes only. The reference
    does not seed its trees; ours draw their seeds from `rng`, one a factor, so the scores do
    not depend on `n_jobs`. Codes are standardised, which changes no tree but keeps what float32,
    in which scikit-learn grows them, would round away. trees: a key of TREES. Returns
    "disentanglement", "completeness", "informativeness". Raises ValueError for a single code or
    factor, continuous factors.
    """
    samples = as_samples(codes, factors)
    need(trees in TREES, f"trees = {trees!r}; allowed are {', '.join(TREES)}")
    need_discrete(samples, "dci", "bin it or leave it out")
    need(samples.codes.shape[1] > 1 and len(samples.names) > 1, "dci needs two codes and factors")
    (x, y), (x_test, y_test) = train_test(samples, rng, num_train, num_test)
    train, test = (standardise(x), y), (standardise(x_test, like=x), y_test)
    seeds = rng.integers(2**31, size=len(samples.names)).tolist()
    longest_first = sorted(range(len(seeds)), key=lambda k: -len(np.unique(train[1][:, k])))
    fits = Parallel(n_jobs, prefer="threads")(  # tree growing holds no lock
        delayed(_importance)(TREES[trees](random_state=seeds[k]), train, test, k)
        for k in longest_first
    )
    fits = dict(zip(longest_first, fits, strict=True))
    importance = np.stack([fits[k][0] for k in range(len(seeds))], axis=1)
    accuracy = [fits[k][1] for k in range(len(seeds))]
    # + 1e-11 as in the reference: a code without importance counts as spread evenly
    per_code, per_factor = (_concentration(part + 1e-11) for part in (importance, importance.T))
    detail = {
        "protocol": f"Eastwood & Williams 2018, {trees}, settings of Locatello et al. 2019",
        "matrix": importance,
        "matrix_kind": "importance",
        "factors": samples.names,
        "settings": {"num_train": num_train, "num_test": num_test, "trees": trees},
    }
    return {
        "disentanglement": Result(
            score=_weighted(per_code, importance.sum(axis=1)),
            per_code=by_code(per_code),
            **detail,
        ),
        "completeness": Result(
            score=_weighted(per_factor, importance.sum(axis=0)),
            per_factor=by_name(samples.names, per_factor),
            **detail,
        ),
        "informativeness": Result(
            score=np.mean(accuracy), per_factor=by_name(samples.names, accuracy), **detail
        ),
    }


def dci_fast(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_train: AtLeastTwo = 10_000,
    num_test: AtLeastOne = 5_000,
    n_jobs: int = -1,
) -> dict[str, Result]:
    """`dci` with extra trees: seconds instead of minutes, but numbers of its own."""
    sizes = {"num_train": num_train, "num_test": num_test}
    return dci(codes, factors, rng, trees="extra trees", n_jobs=n_jobs, **sizes)


def _importance(model, train, test, factor: int) -> tuple[np.ndarray, float]:
    model.fit(train[0], train[1][:, factor])
    return model.feature_importances_, model.score(test[0], test[1][:, factor])


def _concentration(importance: np.ndarray) -> np.ndarray:
    """1 - entropy of each row, by that of an even one; 0 for what rounding puts below it."""
    return np.maximum(1 - entropy(importance, base=importance.shape[1], axis=1), 0)


def _weighted(scores: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean; the plain one if nothing has weight."""
    return float(np.average(scores, weights=weights if weights.any() else None))


def explicitness(
    codes,
    factors,
    rng: np.random.Generator,
    *,
    num_train: AtLeastTwo = 10_000,
    num_test: AtLeastOne = 5_000,
) -> Result:
    """Explicitness of Ridgeway & Mozer (2018, section 3): can factors be read off linearly.

    Area under the ROC curve of logistic regression on standardised codes, averaged over the
    values of a factor in the test draw and then over factors. Range 0 ... 1, chance .5 (raw, not
    rescaled to 0, as in the reference). Multinomial regression as in current scikit-learn;
    versions before .22 fitted one value against the rest, which gives .03 - .05 less.
    """
    samples = as_samples(codes, factors)
    need_discrete(samples, "explicitness", "bin it or leave it out")
    (x, y), (x_test, y_test) = train_test(samples, rng, num_train, num_test)
    x, x_test = standardise(x), standardise(x_test, like=x)
    areas = [_area(x, y[:, k], x_test, y_test[:, k]) for k in range(y.shape[1])]
    return Result(
        score=np.mean(areas),
        protocol="Ridgeway & Mozer 2018, multinomial, settings of Locatello et al. 2019",
        per_factor=by_name(samples.names, areas),
        settings={"num_train": num_train, "num_test": num_test},
    )


def _area(x, y, x_test, y_test) -> float:
    model = fit_quietly(LogisticRegression(), x, y)
    chance = model.predict_proba(x_test)
    there = [c for c in range(len(model.classes_)) if 0 < (y_test == model.classes_[c]).mean() < 1]
    need(bool(there), "a factor has a single value in the test samples")
    return np.mean([roc_auc_score(y_test == model.classes_[c], chance[:, c]) for c in there])


def infoe(codes, factors, rng: np.random.Generator, *, num_samples: AtLeastTwo = 10_000) -> Result:
    """InfoE, explicitness of Hsu et al. (2023): linearly usable share of the information.

    (H_null - H) / H_null averaged over factors; H is the mean log loss, on the samples it was
    fitted to, of multinomial logistic regression (no penalty, balanced classes, at most 100
    steps) on standardised codes; H_null that of the same without codes, which is log(#values).
    About 0 for noise, at most 1. Raises ValueError for continuous factors.
    """
    samples = as_samples(codes, factors)
    need_discrete(samples, "infoe", "bin it or leave it out")
    x, y = sample(samples, rng, num_samples)
    x = standardise(x)
    gained = []
    for label in y.T:
        model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=100)
        model = fit_quietly(model, x, label)
        loss = log_loss(label, model.predict_proba(x))
        gained.append(1 - loss / np.log(len(model.classes_)))
    return Result(
        score=np.mean(gained),
        protocol="Hsu et al. 2023",
        per_factor=by_name(samples.names, gained),
        settings={"num_samples": num_samples},
    )
