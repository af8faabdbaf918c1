"""Known answers of every metric, and what it does with codes and factors that it cannot score."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.linear_model import Lasso
from sklearn.metrics import mutual_info_score as sklearn_mutual_info

from data.grid import FactorGrid
from metrics import METRICS, Result, as_samples, dci, score_all, select, udr
from metrics.information import mutual_information
from metrics.prediction import _concentration
from metrics.registry import sources
from metrics.samples import Samples, draw, partners, standardise, to_bins

pytestmark = pytest.mark.filterwarnings("error")

DSPRITES = FactorGrid(("shape", "scale", "orientation", "posX", "posY"), (3, 6, 40, 32, 32))
GRID = FactorGrid(("shape", "scale", "posX", "posY"), (3, 4, 16, 16))
FACTORS = GRID.factors(np.arange(len(GRID)))
TRUE = (FACTORS - FACTORS.mean(axis=0)) / FACTORS.std(axis=0)
NOISE = np.random.default_rng(1).normal(size=(len(GRID), 4))
LOG3, LOG4, LOG16 = math.log(3), math.log(4), math.log(16)

# Sizes that plain samples of this grid allow; dci's trees are slow.
TRAIN, ALL = {"num_train": 2000, "num_test": 1000}, {"num_samples": 3000}
SETTINGS = {
    "factor_vae": {"num_variance": 3000},
    "dci": {"num_train": 600, "num_test": 300, "n_jobs": 1},
    "dci_fast": TRAIN | {"n_jobs": 1},
    **dict.fromkeys(("sap", "explicitness"), TRAIN),
    **dict.fromkeys(("mig", "modularity", "irs", "infom", "infoc", "infoe"), ALL),
    **dict.fromkeys(("sap_continuous", "gaussian_total_correlation", "mutual_info_score"), ALL),
}


MIX = np.random.default_rng(3).normal(size=(4, 4))  # of independent factors of variance 1
MIX_SQUARED = MIX**2 / (MIX**2).sum(axis=0)  # squared correlations (factors, codes)
MIX_GAPS = np.diff(np.sort(MIX_SQUARED, axis=1)[:, -2:]).mean()
MIX_SCALED = MIX / np.sqrt((MIX**2).sum(axis=0))
MIX_TOTAL_CORRELATION = -np.linalg.slogdet(MIX_SCALED)[1]


def rotate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([a + b, a - b], axis=1) / math.sqrt(2)


CODES = {
    "true": TRUE,
    "permuted": TRUE[:, [2, 0, 3, 1]],
    "negated": -TRUE,
    "monotone": np.exp(0.3 * TRUE),
    "dead": np.c_[TRUE, np.zeros((len(GRID), 2))],
    "constant": np.zeros((len(GRID), 4)),
    "noise": NOISE,
    "duplicated": np.c_[TRUE, TRUE],
    "two in one": np.c_[FACTORS[:, 1] * 3 + FACTORS[:, 0], TRUE[:, 2:], NOISE[:, 0]],
    "rotated": np.c_[TRUE[:, :2], rotate(TRUE[:, 2], TRUE[:, 3])],
    "missing": np.c_[TRUE[:, :3], NOISE[:, 0]],
    "mixed": TRUE @ MIX,
}

# Score of each metric for each kind of codes: a closed form or chance; a range where the answer
# depends on the estimate; None where no score is defined. Kinds without an entry have none.
ONE = dict.fromkeys(("true", "permuted", "negated", "dead", "duplicated"), 1.0)
MONOTONE = {"monotone": 1}
NONE = {"constant": 0, "noise": 0}
COPIES = 2 * (LOG3 + LOG4 + 2 * LOG16) / (8 * 7)
DCI_D = ONE | MONOTONE | NONE | {"rotated": 3 / 4, "two in one": 3 / 4}
DCI_C = ONE | MONOTONE | NONE | {"rotated": 3 / 4, "two in one": 1}
DCI_C |= {"duplicated": 1 - math.log(2) / math.log(8)}
# the missing factor spreads over the codes as far as the trees overfit
DCI_D |= {"missing": (0.7, 0.95), "mixed": (0, 0.5)}
DCI_C |= {"missing": (0.7, 0.95), "mixed": (0, 0.5)}
DCI_I = ONE | MONOTONE | {"constant": (0.05, 0.3), "two in one": 1}
# 3 scale + shape: variances 9 * 15/12 and 8/12
SAME_CODE = 9 * 15 / (9 * 15 + 8)
UNIFORM_TURNED = 2 * (0.5 + 0.5 * math.log(2)) - math.log(4)  # nats of sum and difference
EXPECTED = {
    "beta_vae_paper": ONE
    | MONOTONE
    | {"constant": 1 / 3, "noise": 1 / 3, "rotated": 2 / 3, "missing": 1, "two in one": 1},
    "beta_vae": ONE
    | MONOTONE
    | {"constant": 1 / 4, "noise": 1 / 4, "rotated": 3 / 4, "missing": 1, "two in one": 1},
    "factor_vae": ONE
    | MONOTONE
    | {
        "constant": 0,
        "noise": (0.25, 0.32),
        "rotated": 3 / 4,
        "missing": (0.75, 0.9),
        "mixed": (0.5, 0.95),
    },
    "mig": ONE
    | MONOTONE
    | NONE
    | {"duplicated": 0, "missing": 3 / 4, "rotated": 1 / 2, "mixed": (0, 0.4), "two in one": 1},
    "mig_chen": ONE | NONE | {"duplicated": 0, "missing": (0.6, 0.7), "rotated": 1 / 3},
    "sap": dict.fromkeys(("true", "permuted", "negated", "dead"), (0.3, 0.45))
    | NONE  # below: the second best is chance
    | {"duplicated": 0, "missing": (0.3, 0.4), "monotone": (0.2, 0.45), "mixed": (0, 0.2)},
    "sap_continuous": ONE
    | NONE
    | {"monotone": (0.95, 1), "duplicated": 0, "missing": 3 / 4, "rotated": 1 / 2}
    | {"mixed": MIX_GAPS, "two in one": (SAME_CODE + 1 - SAME_CODE + 2) / 4},
    "dci_disentanglement": DCI_D,
    "dci_completeness": DCI_C,
    "dci_informativeness": DCI_I,
    "dci_fast_disentanglement": DCI_D,
    "dci_fast_completeness": DCI_C,
    "dci_fast_informativeness": DCI_I | {"rotated": 1},
    "modularity": ONE
    | MONOTONE
    | {"dead": 4 / 6, "constant": 0, "noise": (0.5, 0.85), "rotated": 5 / 6}
    | {"missing": (0.85, 1), "two in one": (0.8, 0.95)},
    "explicitness": ONE
    | MONOTONE
    | {"constant": 0.5, "noise": 0.5, "missing": 7 / 8, "rotated": 1, "mixed": (0.9, 1)},
    "irs": ONE
    | MONOTONE
    | {"constant": 0, "noise": (0.2, 0.4), "rotated": 0.68, "mixed": (0.3, 0.7)}
    | {"missing": (0.6, 0.75)},
    "infom": ONE
    | MONOTONE
    | {"constant": None, "noise": (0, 0.6), "rotated": 2 / 3, "mixed": (0.2, 0.7)}
    | {"missing": (0.7, 0.9)},
    "infoc": ONE
    | MONOTONE
    | {"constant": None, "noise": (0, 0.6), "duplicated": 3 / 7, "rotated": 2 / 3}
    | {"missing": 3 / 4, "two in one": (0.9, 1), "mixed": (0.2, 0.7)},
    "infoe": ONE | MONOTONE | NONE | {"rotated": 1, "missing": 3 / 4, "mixed": 1},
    "gaussian_total_correlation": dict.fromkeys((*ONE, "monotone", "rotated", "missing"), 0)
    | NONE
    | {"duplicated": None, "mixed": MIX_TOTAL_CORRELATION},
    "mutual_info_score": dict.fromkeys((*ONE, "monotone"), 0)
    | {"constant": 0, "noise": (0, 0.1), "duplicated": (COPIES, COPIES + 0.03)}
    | {"missing": (0, 0.05), "rotated": (UNIFORM_TURNED / 6, UNIFORM_TURNED / 6 + 0.03)},
}
QUICK = ("true", "duplicated", "rotated")  # kinds that get boosted trees in the quick tests


@functools.cache
def scores(kind: str, group: str, plain: bool = False) -> dict:
    codes, logvar = CODES[kind], np.full(CODES[kind].shape, -6.0)
    metrics = ["dci"] if group == "dci" else [key for key in METRICS if "dci_" not in key]
    metrics += ["dci_fast"] if group != "dci" else []
    samples = as_samples(codes, GRID)
    if plain:
        order = np.random.default_rng(2).permutation(len(codes))
        samples = as_samples(codes[order], FACTORS[order], GRID.names)
    return score_all(samples, None, metrics=metrics, logvar=logvar, settings=SETTINGS)


def score(metric: str, kind: str, plain: bool = False) -> dict:
    return scores(kind, "dci" if metric in BOOSTED else "rest", plain)[metric]


BOOSTED = select(["dci"])
CASES = [
    pytest.param(metric, kind, marks=pytest.mark.slow)
    if metric in BOOSTED and kind not in QUICK
    else (metric, kind)
    for metric in METRICS
    for kind in EXPECTED.get(metric, ())
]


def test_a_metric_that_takes_log_variances_is_given_them(monkeypatch):
    given = []

    def own(codes, factors, rng, *, logvar=None):
        given.append(logvar)
        return Result(0.5, "ours", {})

    monkeypatch.setitem(METRICS, "own", own)
    codes, factors = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20)[:, None] % 2
    logvar = np.zeros((20, 2))
    assert score_all(codes, factors, metrics=("own",), logvar=logvar)["own"]["score"] == 0.5
    score_all(codes, factors, metrics=("own",))
    assert given[0] is logvar
    assert given[1] is None


def test_copies_of_a_row_are_no_neighbours_and_no_test_set():
    """On a small grid, where a draw with replacement has each image many times."""
    grid, rng = FactorGrid(("a", "b"), (30, 30)), np.random.default_rng(0)
    factors = grid.factors(np.arange(len(grid)))
    known = standardise(factors) + 0.02 * rng.normal(size=factors.shape)
    noise = rng.normal(size=(len(grid), 3))
    settings = {"infom": {"num_samples": 900}, "dci_fast": {"num_train": 600, "num_test": 300}}
    settings["infoc"] = settings["infom"]
    found = score_all(known, grid, metrics=("infom", "infoc"), settings=settings)
    assert all(entry["score"] > 0.9 for entry in found.values())
    found = score_all(noise, grid, metrics=("dci_fast",), settings=settings)
    assert found["dci_fast_informativeness"]["score"] < 0.2
    found = score_all(known, grid, metrics=("infom", "dci_fast_informativeness", "mig"))
    assert "there are only 900 samples" in found["infom"]["reason"]
    assert "there are only 900 samples" in found["dci_fast_informativeness"]["reason"]
    assert found["mig"]["score"] > 0.7


def test_settings_of_numpy_types_are_plain_in_json(monkeypatch):
    def own(codes, factors, rng):
        return Result(0.5, "ours", {"active": np.int64(3), "each": np.ones(2), "name": "x"})

    monkeypatch.setitem(METRICS, "own", own)
    entry = score_all(TRUE, GRID, metrics=("own",))["own"]
    assert json.loads(json.dumps(entry))["settings"] == {"active": 3, "each": [1, 1], "name": "x"}


def test_every_metric_has_known_answers():
    missing = set(METRICS) - set(EXPECTED)
    assert not missing, f"add to EXPECTED what is known of {missing}"


@pytest.mark.parametrize(("metric", "kind"), CASES)
def test_known_answer(metric, kind):
    expected, got = EXPECTED[metric][kind], score(metric, kind)
    if expected is None:
        assert got["score"] is None
        assert got["reason"]
    elif isinstance(expected, tuple):
        assert expected[0] <= got["score"] <= expected[1]
    else:
        assert got["score"] == pytest.approx(expected, abs=0.06 if metric in BOOSTED else 0.03)


@pytest.mark.parametrize("metric", [m for m in METRICS if m not in BOOSTED])
def test_plain_samples_score_like_the_grid(metric):
    for kind in ("true", "rotated"):
        grid, plain = score(metric, kind)["score"], score(metric, kind, plain=True)["score"]
        assert plain == pytest.approx(grid, abs=0.03)


@pytest.mark.parametrize("kind", ["constant", "duplicated", "missing", "noise", "rotated"])
def test_gaps_are_below_those_of_the_true_factors(kind):
    for metric in ("mig", "mig_chen", "sap", "sap_continuous"):
        assert score(metric, kind)["score"] < score(metric, "true")["score"] - 0.01


# --- ceilings of the whole dSprites grid, from the true factors as codes ---------------------


@pytest.fixture(scope="module")
def dsprites() -> np.ndarray:
    return DSPRITES.factors(np.arange(len(DSPRITES))).astype(np.float64)


def test_mig_ceiling_of_dsprites(dsprites):
    result = METRICS["mig"](dsprites, DSPRITES, np.random.default_rng(0))
    assert result.score == pytest.approx(0.8955, abs=0.002)
    assert list(result.per_factor) == list(DSPRITES.names)
    expected = [0.997, 0.997, 0.802, 0.842, 0.840]
    assert list(result.per_factor.values()) == pytest.approx(expected, abs=0.004)


def test_mig_of_scale_and_position_only(dsprites):
    noise = np.random.default_rng(0).normal(size=(len(dsprites), 2))
    codes = np.c_[dsprites[:, [1, 3, 4]], noise]
    assert METRICS["mig"](codes, DSPRITES, np.random.default_rng(0)).score == pytest.approx(
        0.536, abs=0.003
    )


def test_sap_ceiling_of_dsprites(dsprites):
    result = METRICS["sap"](dsprites, DSPRITES, np.random.default_rng(0))
    assert result.score == pytest.approx(0.24, abs=0.015)


def test_intervention_metrics_on_all_of_dsprites(dsprites):
    for name in ("beta_vae_paper", "beta_vae", "factor_vae"):
        assert METRICS[name](dsprites, DSPRITES, np.random.default_rng(0)).score > 0.999
    noise = np.random.default_rng(1).normal(size=(len(dsprites), 10))
    chance = METRICS["beta_vae_paper"](noise, DSPRITES, np.random.default_rng(0))
    assert chance.score == pytest.approx(1 / 4, abs=0.015)
    assert chance.settings["fixed"] == ["scale", "orientation", "posX", "posY"]


# --- the parts that the metrics are made of ---------------------------------------------------


def test_bins_and_information_are_those_of_numpy_and_scikit_learn():
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(size=(500, 2)), np.full(500, 7.0)]
    bins = to_bins(x, 20)
    for d in range(3):
        edges = np.histogram(x[:, d], 20)[1][:-1]
        same = np.unique(np.digitize(x[:, d], edges), return_inverse=True)[1]
        np.testing.assert_array_equal(np.unique(bins[:, d], return_inverse=True)[1], same)
    labels = rng.integers(5, size=(500, 2))
    expected = [[sklearn_mutual_info(b, y) for y in labels.T] for b in bins.T]
    np.testing.assert_allclose(mutual_information(bins, labels), expected, atol=1e-12)


@pytest.mark.parametrize("plain", [False, True])
def test_partners_share_one_value_and_nothing_else(plain):
    samples = as_samples(TRUE, GRID)
    if plain:
        order = np.random.default_rng(0).permutation(len(GRID))
        samples = Samples(TRUE[order], GRID.names, None, FACTORS[order], (False,) * 4)
    rng = np.random.default_rng(1)
    rows = rng.integers(len(GRID), size=(2000, 2))
    for factor in range(4):
        other = partners(samples, rng, rows, factor, at_least=2)
        agree = samples.values(rows.ravel()) == samples.values(other.ravel())
        assert agree[:, factor].all()
        for k in set(range(4)) - {factor}:
            assert agree[:, k].mean() == pytest.approx(1 / GRID.sizes[k], abs=0.04)
        assert len(np.unique(other)) > 0.5 * len(GRID)
        assert not plain or (rows != other).all()


def test_drawing_from_plain_samples_never_repeats_a_row():
    samples = as_samples(NOISE[:100], np.arange(200).reshape(100, 2) % 7)
    rows = draw(samples, np.random.default_rng(0), 100, "num_samples")
    np.testing.assert_array_equal(np.sort(rows), np.arange(100))


def js_divergence(mean: float, stds: tuple[float, float]) -> float:
    """Information in nats of a fair bit with z ~ N(-+mean, stds[bit]), by quadrature."""

    def integrand(z):
        p, q = norm.pdf(z, -mean, stds[0]), norm.pdf(z, mean, stds[1])
        m = (p + q) / 2
        return sum(0.5 * a * np.log(a / m) for a in (p, q) if a > 0)

    return quad(integrand, -12, 12, limit=500, points=(-mean, mean))[0]


@pytest.mark.parametrize(
    ("mean", "stds"), [(0.5, (1, 1)), (1, (1, 0.1)), (0, (0.3, 1)), (2, (0.02, 0.02))]
)
def test_information_of_sampled_codes_is_that_of_the_mixture(mean, stds):
    bit, nothing = np.repeat([[0], [1]], 2, axis=0), np.zeros((4, 1))
    codes = np.c_[np.where(bit, mean, -mean), nothing]
    logvar = np.c_[2 * np.log(np.where(bit, stds[1], stds[0])), nothing]
    factors = np.c_[bit, [[0], [1], [0], [1]]]
    result = METRICS["mig_chen"](codes, factors, logvar=logvar)
    information = js_divergence(mean, stds) / math.log(2)
    np.testing.assert_allclose(result.matrix, [[information, 0], [0, 0]], atol=1e-3)
    assert result.score == pytest.approx(information / 2, abs=1e-3)


def test_total_correlation_of_correlated_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 200_000))
    codes = np.c_[a, 0.6 * a + 0.8 * b]
    factors = rng.integers(3, size=(200_000, 1))
    metric = METRICS["gaussian_total_correlation"]
    got = metric(codes, factors, rng, num_samples=200_000).score
    assert got == pytest.approx(-0.5 * math.log(1 - 0.6**2), abs=0.01)


def test_udr_ranks_runs_by_what_others_found():
    rng = np.random.default_rng(0)
    same = [TRUE[:, order] * sign for order, sign in (([0, 1, 2, 3], 1), ([3, 1, 0, 2], -1))]
    odd = np.c_[rotate(TRUE[:, 0], TRUE[:, 1]), rotate(TRUE[:, 2], TRUE[:, 3])]
    exact = udr(same, rng, correlation="spearman", num_samples=3000)
    assert exact.score == pytest.approx(1, abs=0.02)
    shrunk = udr(same, rng, num_samples=3000)  # a Lasso of strength .1 takes .1 of each
    assert shrunk.score == pytest.approx(0.9, abs=0.02)
    three = udr([*same, odd], rng, num_samples=3000).settings["scores"]
    assert max(three) == pytest.approx(0.62, abs=0.05)
    assert three[2] < 0.4
    assert udr([TRUE, NOISE], rng, num_samples=3000).score < 0.01


def test_udr_takes_the_median_over_what_others_find():
    """Pair by pair, on runs whose Lasso differs from that of the way back."""
    runs = [TRUE[:, :2] @ mix for mix in ([[1, 0.8], [0, 0.6]], [[1, 0.3], [0.2, 1]], [[1], [0.5]])]
    runs = [run / run.std(axis=0) for run in runs]

    def pair(source, target):
        strength = np.abs(Lasso(alpha=0.1).fit(source, target).coef_).reshape(target.shape[1], -1)
        return np.mean(
            [(s.max(axis=1) ** 2 / s.sum(axis=1)).mean() for s in (strength, strength.T)]
        )

    to = [[pair(runs[i], runs[j]) for i in range(3) if i != j] for j in range(3)]
    back = [[pair(runs[j], runs[i]) for i in range(3) if i != j] for j in range(3)]
    assert np.abs(np.subtract(np.median(to, axis=1), np.median(back, axis=1))).min() > 0.02
    got = udr(runs, np.random.default_rng(0), num_samples=len(TRUE)).settings["scores"]
    assert got == pytest.approx(np.median(to, axis=1), abs=1e-6)


def test_a_collapsed_run_scores_0_and_takes_no_udr_from_the_others():
    rng, odd = np.random.default_rng(0), TRUE[:, [1, 0, 2]]
    alone = udr([TRUE, odd, TRUE], rng, num_samples=len(TRUE)).settings["scores"]
    got = udr([TRUE, 0 * TRUE, odd, TRUE], rng, num_samples=len(TRUE)).settings["scores"]
    assert got == pytest.approx([alone[0], 0, *alone[1:]], abs=1e-6)


def test_codes_that_serve_all_factors_alike_have_no_dci_below_0():
    even = [_concentration(np.full((1, n), 1 / n)).item() for n in range(2, 30)]
    assert min(even) == 0  # 1 - the entropy of 5 is -2e-16
    assert even == pytest.approx([0] * 28, abs=1e-9)
    assert _concentration(np.eye(3)) == pytest.approx([1, 1, 1])


def test_a_score_depends_on_the_files_of_its_metric_and_no_others():
    def files(key):
        return {file.name for file in sources(key)}

    every = {"result.py", "samples.py", "score.py"}
    assert files("mig") == every | {"information.py"}
    assert files("sap") == files("dci_fast_completeness") == files("mig") | {"prediction.py"}
    assert files("irs") == files("sap") | {"interventions.py"}


def test_udr_leaves_out_codes_without_information():
    rng = np.random.default_rng(0)
    padded = np.c_[TRUE, 0.3 * NOISE[:, :1]]
    kept = np.full(padded.shape, -4.0)
    kept[:, 4] = -0.09  # KL .001 nats or so with a mean this small
    padded[:, 4] *= 0.01
    got = udr([padded, padded], rng, logvars=[kept, kept], num_samples=3000)
    assert got.score == pytest.approx(0.9, abs=0.02)
    with pytest.raises(ValueError, match="two are needed, not 1"):
        udr([TRUE], rng)
    with pytest.raises(ValueError, match="fewer than two of 2 runs have an active code"):
        udr([TRUE, 0 * TRUE], rng, num_samples=3000)
    with pytest.raises(ValueError, match=r"correlation = 'pearson'; allowed are lasso, spearman"):
        udr([TRUE, TRUE], rng, correlation="pearson")


# --- what goes in -----------------------------------------------------------------------------


class Lazy:
    """Codes that are made when asked for."""

    shape = TRUE.shape

    def __getitem__(self, rows):
        return (TRUE[rows] * 64).astype(np.int8)


@pytest.mark.parametrize("metric", ["beta_vae_paper", "factor_vae", "mig", "sap_continuous"])
def test_codes_may_be_a_tensor_or_made_on_demand(metric):
    def score(codes):
        return METRICS[metric](codes, GRID, np.random.default_rng(0)).score

    assert score(torch.tensor(TRUE, requires_grad=True)) == score(TRUE)
    assert score(torch.tensor(TRUE).bfloat16()) == pytest.approx(score(TRUE), abs=0.01)
    assert score(Lazy()) == pytest.approx(score(TRUE), abs=0.01)


def test_integers_that_form_the_grid_are_recognised():
    assert as_samples(TRUE, FACTORS).sizes == GRID.sizes
    assert as_samples(TRUE, torch.tensor(FACTORS)).sizes == GRID.sizes
    assert as_samples(TRUE[::-1], FACTORS[::-1]).sizes is None
    assert as_samples(TRUE[1:], FACTORS[1:]).sizes is None
    assert as_samples(TRUE, FACTORS - 1).sizes is None
    assert as_samples(TRUE, FACTORS, "abcd").names == ("a", "b", "c", "d")


WITH_NAN = TRUE.copy()
WITH_NAN[5, 1] = np.nan


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (WITH_NAN, GRID, "codes has NaN or infinity in 1 rows, first in row 5"),
        (TRUE[:, 0], GRID, r"codes has shape \(3072,\); \(N samples, D codes\) is allowed"),
        (TRUE[:0], FACTORS[:0], r"codes has shape \(0, 4\)"),
        (TRUE[:9], GRID, r"codes has 9 rows, but the factor grid 3 x 4 x 16 x 16 has 3072"),
        (TRUE, FACTORS[:9], r"factors has shape \(9, 4\); \(3072, K\) like codes"),
        (TRUE, np.full((len(GRID), 2), 3), "no factor varies: factor 0, factor 1"),
        (TRUE, FACTORS.astype(str), "factors has dtype <U21; numbers"),
        (TRUE, None, "factors has dtype object; numbers"),
        (TRUE, FACTORS + np.inf, "factors has NaN or infinity"),
        (TRUE.astype(complex), GRID, "codes has dtype complex128; numbers are allowed"),
        (TRUE * 1e150, GRID, r"codes has the value .*e\+150; at most 1e\+100 is allowed"),
        (TRUE * 1e-150, GRID, r"code 0 of codes varies by .*e-150 only; rescale it"),
        (TRUE.astype(np.longdouble) * np.longdouble("1e400"), GRID, "codes has NaN or infinity"),
        (TRUE, FACTORS.astype(np.uint64) << np.uint64(62), "factors has the value"),
        (TRUE, FACTORS * 1e150, "factors has the value"),
    ],
)
def test_bad_input_is_named(codes, factors, message):
    with pytest.raises(ValueError, match=message):
        as_samples(codes, factors)


def test_constant_factors_are_left_out_and_said_to_be():
    colour = FactorGrid(("colour", *GRID.names), (1, *GRID.sizes))
    got = score_all(TRUE, colour, metrics=["mig"])["mig"]
    assert got["constant_factors"] == ["colour"]
    assert list(got["per_factor"]) == list(GRID.names)
    assert got["score"] == score_all(TRUE, GRID, metrics=["mig"])["mig"]["score"]


USES_ALL = ("mig_chen",)  # metrics that take what samples there are


@pytest.mark.parametrize("metric", METRICS)
def test_too_few_samples_are_refused(metric):
    order = np.random.default_rng(0).permutation(len(GRID))[:50]
    entry = score_all(TRUE[order], FACTORS[order], metrics=[metric], logvar=TRUE[order])[metric]
    if metric in USES_ALL:  # your metric too, if it does
        assert 0 <= entry["score"] <= 1
    else:
        assert entry["score"] is None
        why = "2 that share it" if "beta" in metric else "there are only 50 samples; lower num_"
        assert why in entry["reason"]


@pytest.mark.parametrize("metric", ["beta_vae_paper", "beta_vae"])
def test_a_classifier_of_pairs_cannot_learn_the_rows_by_heart(metric):
    rng = np.random.default_rng(0)
    noise, factors = rng.normal(size=(200, 10)), rng.integers((3, 4, 8), size=(200, 3))
    got = [METRICS[metric](noise, factors, np.random.default_rng(seed)).score for seed in range(4)]
    assert np.mean(got) == pytest.approx(1 / 3, abs=0.04)  # .40 with rows in both draws


def test_values_of_few_samples_do_not_make_noise_robust_or_informative():
    noise, rare = NOISE[:3000], np.arange(3000)[:, None] // 5
    for metric, least in (("irs", 20), ("infom", 11), ("infoc", 11)):
        factors = np.c_[rare, FACTORS[:3000, 2]]
        reason = score_all(noise, factors, metrics=[metric], settings=SETTINGS)[metric]["reason"]
        assert f"in 5 of the 3000 samples drawn; {least} or more are needed" in reason


def test_levels_of_floats_are_values_like_any_other():
    levels = 0.1 + 0.35 * FACTORS
    assert as_samples(TRUE, levels).sizes == GRID.sizes
    order = np.random.default_rng(0).permutation(len(GRID))
    samples = as_samples(TRUE[order], levels[order])
    assert samples.continuous == (False,) * 4
    np.testing.assert_array_equal(samples.factors, FACTORS[order])
    half = as_samples(TRUE[order], np.c_[levels[order][:, 0], NOISE[:, 0]])
    assert half.continuous == (False, True)


@pytest.mark.parametrize("change", [lambda z: 1e-8 * z, lambda z: z + 1e8, lambda z: -1e9 * z])
def test_dci_does_not_depend_on_scale_and_offset(change):
    def entry(codes):
        return score_all(codes, GRID, metrics=["dci_fast"], settings=SETTINGS)

    for key, found in entry(change(TRUE)).items():
        assert found["score"] == pytest.approx(entry(TRUE)[key]["score"], abs=0.01)


UNSUPERVISED = ("gaussian_total_correlation", "mutual_info_score")
BINNED = ("mig", "sap_continuous", "modularity", "irs", "infom", "infoc")  # take continuous factors


@pytest.mark.parametrize("metric", METRICS)
def test_continuous_factors_are_binned_or_refused(metric):
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(4000, 2))
    settings = SETTINGS | {"irs": ALL | {"num_bins": 20}}
    got = score_all(values, values, metrics=[metric], settings=settings, logvar=values - 9)[metric]
    if metric in UNSUPERVISED:  # what a metric does with continuous factors: name it in a tuple
        assert got["score"] < 0.1
    elif metric in BINNED:
        assert got["score"] > 0.85
    else:
        assert got["score"] is None
        assert "'factor 0' is continuous; " in got["reason"]


@pytest.mark.parametrize("metric", METRICS)
def test_a_single_factor_or_code_is_scored_or_refused(metric):
    def entry(codes, factors):
        kwargs = {"metrics": [metric], "settings": SETTINGS, "logvar": np.full(codes.shape, -6.0)}
        return score_all(codes, factors, **kwargs)[metric]

    one_factor = entry(TRUE, FACTORS[:, 2:3])
    one_code = entry(TRUE[:, :1], GRID)
    two_factors = ("beta_vae", "factor_vae", "dci", "modularity", "infom")
    if metric.startswith(two_factors):
        assert one_factor["score"] is None
        assert "two" in one_factor["reason"]
    else:
        assert one_factor["score"] >= 0
    two_codes = ("mig", "sap", "dci", "infoc", "mutual_info_score")
    assert (one_code["score"] is None) == metric.startswith(two_codes)
    assert "two codes" in one_code.get("reason", "two codes").replace("active ", "")


def test_interventions_need_each_value_often_enough():
    factors = FACTORS.copy()
    factors[7, 0] = 3
    with pytest.raises(ValueError, match=r"'factor 0' has the value 3 in 1 of .* samples; 2"):
        METRICS["beta_vae"](TRUE, factors, np.random.default_rng(0))


def test_a_factor_that_the_draw_misses_is_named():
    factors = np.c_[FACTORS[:, 0], np.arange(len(GRID)) == 1]
    with pytest.raises(ValueError, match="'factor 1' has a single value in the 10 samples drawn"):
        METRICS["mig"](TRUE, factors, np.random.default_rng(0), num_samples=10)


# --- several at once --------------------------------------------------------------------------

FEW = ["mig", "sap", "infom", "dci_fast"]


def without_seconds(scores: dict) -> dict:
    return {
        key: {k: v for k, v in entry.items() if k != "seconds"} for key, entry in scores.items()
    }


def test_same_seed_same_json_whatever_else_is_computed():
    def entries(**choice):
        return without_seconds(score_all(TRUE, GRID, settings=SETTINGS, **choice))

    both = entries(metrics=FEW, seed=3)
    text = json.dumps(both, allow_nan=False)
    assert text == json.dumps(entries(metrics=FEW[::-1], seed=3), allow_nan=False)
    alone = entries(metrics=["infom"], seed=3)
    assert alone["infom"] == both["infom"]
    assert entries(metrics=["infom"], seed=4)["infom"]["score"] != alone["infom"]["score"]


def test_every_entry_is_plain_json():
    for entries in (scores("true", "rest"), scores("constant", "rest"), scores("true", "dci")):
        assert list(json.loads(json.dumps(entries, allow_nan=False))) == list(entries)
        for entry in entries.values():
            assert list(entry)[-1] == "seconds"
            assert entry["score"] is None or {"protocol", "settings"} < entry.keys()


def test_repeats_give_mean_and_spread():
    kwargs = {"metrics": ["mig", "gaussian_total_correlation"], "settings": SETTINGS}
    got = score_all(TRUE + NOISE, GRID, repeats=4, **kwargs)["mig"]
    assert got["score"] == pytest.approx(np.mean(got["scores"]), abs=1e-12)
    assert got["spread"] == pytest.approx(np.std(got["scores"], ddof=1), abs=1e-12)
    assert 0 < got["spread"] < 0.02
    assert got["score"] == pytest.approx(np.mean(list(got["per_factor"].values())), abs=1e-12)
    once = score_all(TRUE + NOISE, GRID, **kwargs)["mig"]
    assert once["score"] == got["scores"][0]
    pairs = {"metrics": ["beta_vae_paper"], "repeats": 2}
    settings = score_all(TRUE + NOISE, GRID, **pairs)["beta_vae_paper"]["settings"]
    assert settings["num_pairs"] == 30
    assert "scores" not in settings  # they are of a single draw


def test_chens_gap_is_over_the_entropy_of_an_unbalanced_factor():
    bit = (np.arange(1000) % 10 == 0).astype(int)
    factors = np.c_[bit, np.arange(1000) // 10 % 4]
    logvar = np.full((1000, 2), -12.0)
    got = METRICS["mig_chen"](factors * 1.0, factors, logvar=logvar)
    assert got.score == pytest.approx(1, abs=1e-3)


def test_a_constant_code_has_no_vote():
    padded, settings = np.c_[TRUE, np.zeros(len(TRUE))], {"min_std": 0.0, "num_variance": 3000}
    for codes, active in ((TRUE, 4), (padded, 4)):
        got = METRICS["factor_vae"](codes, GRID, np.random.default_rng(0), **settings)
        assert got.score == pytest.approx(1)
        assert got.settings["active_codes"] == active


@pytest.mark.parametrize(
    ("metric", "setting"),
    [
        ("sap", {"num_train": -1}),
        ("factor_vae", {"num_test": 0}),
        ("factor_vae", {"batch_size": 1}),
        ("beta_vae", {"num_pairs": 0}),
        ("beta_vae_paper", {"classifier_seeds": 0}),
        ("mig", {"num_samples": 0}),
        ("modularity", {"num_bins": 1}),
        ("infoc", {"neighbours": 0}),
    ],
)
def test_a_size_out_of_range_is_named(metric, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name}.* = -?[01]; [12] or more are allowed"):
        METRICS[metric](TRUE, GRID, np.random.default_rng(0), **setting)


def test_udr_wants_the_posterior_of_every_run():
    rng, logvar = np.random.default_rng(0), np.full(TRUE.shape, -4.0)
    with pytest.raises(ValueError, match="logvars of 1 runs are given for 2"):
        udr([TRUE, TRUE], rng, logvars=[logvar], num_samples=100)
    with pytest.raises(ValueError, match=r"logvar 0 has shape \(3072, 1\) .* \(3072, 4\) like its"):
        udr([TRUE, TRUE], rng, logvars=[logvar[:, :1], logvar], num_samples=100)


def test_progress_names_each_metric():
    seen = []
    score_all(TRUE, GRID, metrics=["mig", "irs"], progress=lambda *state: seen.append(state))
    assert seen == [("mig", 0, 2), ("irs", 1, 2), ("", 2, 2)]


def test_choosing_metrics():
    assert select(["all"]) == list(METRICS)
    assert select(["mig", " sap"]) == ["mig", "sap"]
    assert select(["irs", "dci", "mig"]) == [
        "mig",
        "dci_disentanglement",
        "dci_completeness",
        "dci_informativeness",
        "irs",
    ]
    with pytest.raises(ValueError, match="unknown metric 'migg'; did you mean 'mig'"):
        select(["migg"])
    with pytest.raises(ValueError, match="repeats = 0; 1 or more are allowed"):
        score_all(TRUE, GRID, metrics=["mig"], repeats=0)
    with pytest.raises(ValueError, match="settings for 'dci_completeness'; allowed are beta_vae,"):
        score_all(TRUE, GRID, metrics=["dci"], settings={"dci_completeness": {}})


@pytest.mark.parametrize(
    "wrong", [{"score": math.nan}, {"score": 1, "per_factor": {"a": math.inf}}]
)
def test_a_number_that_is_not_finite_costs_no_other_metric(monkeypatch, wrong):
    def mine(codes, factors, rng):
        return Result(protocol="mine", settings={}, **wrong)

    monkeypatch.setitem(METRICS, "mine", mine)
    got = score_all(TRUE, GRID, metrics=["mig", "mine"])
    assert got["mine"]["score"] is None
    assert got["mine"]["reason"] == "a number of it is not finite"
    json.dumps(got, allow_nan=False)
    assert got["mig"]["score"] > 0.9


def test_without_a_posterior_chens_mig_says_why():
    entry = score_all(TRUE, GRID, metrics=["mig_chen"])["mig_chen"]
    assert entry["score"] is None
    assert "log-variances" in entry["reason"]
    with pytest.raises(
        ValueError, match=r"logvar has shape \(9, 4\) .* \(3072, 4\) like its codes"
    ):
        METRICS["mig_chen"](TRUE, GRID, logvar=TRUE[:9])


def test_dci_does_not_depend_on_the_number_of_workers():
    def importance(n_jobs, trees):
        sizes = {"num_train": 300, "num_test": 100}
        rng = np.random.default_rng(0)
        result = dci(TRUE + NOISE, FACTORS[:, :2], rng, trees=trees, n_jobs=n_jobs, **sizes)
        return result["completeness"]

    for trees in ("gradient boosting", "extra trees"):
        one, two = importance(1, trees), importance(2, trees)
        np.testing.assert_array_equal(one.matrix, two.matrix)
        assert one.to_json() == two.to_json()
