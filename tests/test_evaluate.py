"""evaluate.py: checkpoints, plain codes and baselines in; table, scores and pictures out."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import evaluate
import runs
import train
from metrics import score_all
from training.checkpoint import load_checkpoint, save_checkpoint

FEW = [
    "beta_vae_paper.num_train=200",
    "beta_vae_paper.num_test=100",
    "beta_vae_paper.without=[]",
    "factor_vae.num_train=200",
    "factor_vae.num_test=100",
    "factor_vae.num_variance=48",
    "mig.num_samples=48",
]
PUBLISHED = "res/twoD/runs/twoD_annealed/seed0"


@pytest.fixture
def run(command, tmp_path):
    assert train.main(command("config/twoD.yaml")) == 0
    return tmp_path / "runs/small/seed0"


def call(*arguments):
    return evaluate.main([*map(str, arguments), "--device", "cpu"])


def scores_in(folder):
    return json.loads((folder / "metrics.json").read_text())["scores"]


def write_codes(path, **arrays):
    """Codes that are the factors of a grid."""
    grid = np.stack(np.unravel_index(np.arange(3 * 6 * 40 * 4), (3, 6, 40, 4)), axis=1)
    arrays = {"codes": grid + 0.0, "sizes": np.array([3, 6, 40, 4])} | arrays
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path, grid


def scores_of(path, *arguments):
    """Scores of a file of codes, in a new folder."""
    out = Path(tempfile.mkdtemp(dir=path.parent))
    assert call("--codes", path, "--out", out, *arguments) in (0, 1)
    return scores_in(out / path.stem)


# Runs


def test_a_run_is_scored(run, capsys):
    before = (run / "fixed.png").stat().st_mtime_ns
    assert call("--checkpoint", run, *FEW) == 0
    scores = scores_in(run)
    assert list(scores) == ["beta_vae_paper", "factor_vae", "mig"]
    assert scores["mig"]["settings"] == {"num_samples": 48, "num_bins": 20}
    assert set(scores["mig"]["per_factor"]) == {"size", "posX", "posY"}
    assert all(0 <= entry["score"] <= 1 for entry in scores.values())
    assert "mig" in capsys.readouterr().out
    assert (run / "matrix_mig.png").stat().st_size > 0
    assert (run / "fixed.png").stat().st_mtime_ns == before  # not drawn again


def test_a_score_is_kept_while_checkpoint_settings_and_version_are_the_same(
    run, monkeypatch, capsys
):
    arguments = ["--checkpoint", run, *FEW]
    assert call(*arguments, "--metrics", "mig,factor_vae") == 0
    first, computed = scores_in(run), []

    def noted(samples, names, **options):
        computed.extend(names)
        return score_all(samples, names, **options)

    monkeypatch.setattr(evaluate, "score_all", noted)
    assert call(*arguments) == 0
    assert computed == ["beta_vae_paper"]
    assert scores_in(run)["mig"] == first["mig"]
    monkeypatch.setitem(evaluate.VERSIONS, "mig", 2)  # its numbers have changed
    assert call(*arguments) == 0
    assert computed == ["beta_vae_paper", "mig"]
    state = load_checkpoint(run)[0]
    save_checkpoint(run / "checkpoint.pt", state | {"step": 5})  # it was trained on
    assert call(*arguments) == 0
    assert len(computed) == 5
    before = (run / "metrics.json").read_bytes()
    assert call(*arguments, "--seed", 1) == 2
    assert "(beta_vae_paper.seed: 0 there, 1 here); choose another --out" in capsys.readouterr().err
    assert (run / "metrics.json").read_bytes() == before
    assert call(*arguments, "--seed", 1, "--out", run / "other") == 0


def test_an_interrupted_evaluation_keeps_what_is_done(run, monkeypatch):
    def stop(samples, names, **options):
        yield from score_all(samples, names[:2], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "score_all", stop)
        assert call("--checkpoint", run, *FEW) == 130
    assert list(scores_in(run)) == ["beta_vae_paper", "factor_vae"]
    assert call("--checkpoint", run, *FEW) == 0
    assert list(scores_in(run)) == ["beta_vae_paper", "factor_vae", "mig"]


@pytest.mark.slow
def test_published_scores_come_out_again_digit_for_digit(tmp_path):
    published = scores_in(Path(PUBLISHED))
    names = ["factor_vae", "mig", "modularity"]
    assert call("--checkpoint", PUBLISHED, "--metrics", ",".join(names), "--out", tmp_path) == 0
    for name in names:
        assert scores_in(tmp_path)[name]["score"] == pytest.approx(
            published[name]["score"], abs=2e-3
        )


def test_data_may_have_moved_but_not_changed(command, squares, tmp_path, capsys):
    own, moved = tmp_path / "own.npz", tmp_path / "moved.npz"
    shutil.copy(squares, own)
    assert train.main(command("config/twoD_vae.yaml", f"dataset.path={own}")) == 0
    run = tmp_path / "runs/small/seed0"
    runs._load_data.cache_clear()
    own.rename(moved)
    arguments = ["--checkpoint", run, "--metrics", "mig", FEW[-1]]
    assert call(*arguments) == 2
    assert "own.npz" in capsys.readouterr().err
    assert call(*arguments, f"dataset.path={moved}") == 0
    arrays = dict(np.load(moved))
    np.savez(moved, **arrays | {"images": arrays["images"][::-1]})
    runs._load_data.cache_clear()
    assert call(*arguments, f"dataset.path={moved}") == 2
    assert "was trained on other images or factors" in capsys.readouterr().err


def test_a_path_with_an_equals_sign_is_a_path(run, tmp_path):
    odd = tmp_path / "lr=0.1"
    shutil.copytree(run, odd)
    assert call("--checkpoint", odd, "--metrics", "mig", "mig.num_samples=48") == 0
    assert scores_in(odd)["mig"]["score"] is not None


def test_several_runs_are_compared(command, run, tmp_path, capsys):
    assert train.main(command("config/twoD.yaml", "seed=1")) == 0
    assert call("--checkpoint", run, run.parent / "seed1", "--out", tmp_path / "o", *FEW) == 0
    printed = capsys.readouterr().out
    for seed in (0, 1):
        assert f"small, seed {seed}" in printed
        assert set(scores_in(tmp_path / f"o/small/seed{seed}")) >= {"mig"}
    assert "small: no UDR: fewer than two of 2 runs have an active code" in printed
    twin = shutil.copytree(run.parent, tmp_path / "twin/small") / "seed0"  # of the same name
    for other, out in ((run, []), (twin, ["--out", tmp_path / "p"])):
        assert call("--checkpoint", run, other, *out) == 2
        assert "two paths would be in one folder" in capsys.readouterr().err
    weights = shutil.copy(run / "checkpoint.pt", tmp_path / "mine.pt")
    assert call("--checkpoint", weights, "--out", tmp_path / "q", *FEW) == 0
    assert "mine: metrics.json" in capsys.readouterr().out


def test_pictures_without_labels_are_drawn_and_scored_without_labels(
    command, squares, tmp_path, capsys
):
    own = tmp_path / "own.npz"
    np.savez(own, images=np.load(squares)["images"])
    data = f"dataset={{name: npz, path: {own}}}"
    assert train.main(command("config/twoD.yaml", data)) == 0
    run = tmp_path / "runs/small/seed0"
    metrics = "mutual_info_score,mig"
    assert call("--checkpoint", run, "--metrics", metrics, "--samples", "auto") == 0
    scores = scores_in(run)
    assert scores["mutual_info_score"]["score"] >= 0
    assert scores["mig"]["score"] is None
    assert call("--checkpoint", run, "--metrics", "mig", "--out", tmp_path / "o") == 1  # no score


def test_a_collapsed_vae_is_a_warning(command, tmp_path, capsys):
    collapse = ["objective.beta=100000", "model.lr=0.01"]
    assert train.main(command("config/twoD.yaml", *collapse, steps=60)) == 0
    assert call("--checkpoint", tmp_path / "runs/small/seed0", *FEW) in (0, 1)
    assert "posterior collapse" in capsys.readouterr().err


def test_codes_are_written_and_score_like_their_run(run, squares, tmp_path):
    path = tmp_path / "codes.npz"
    assert call("--checkpoint", run, "--write-codes", path) == 0
    arrays = dict(np.load(path))
    assert arrays["codes"].shape == arrays["logvar"].shape == (48, 10)
    assert arrays["names"].tolist() == ["size", "posX", "posY"]
    assert call("--checkpoint", run, "--metrics", "mig", FEW[-1]) == 0
    score = scores_of(path, "--metrics", "mig", FEW[-1])["mig"]["score"]
    assert score == scores_in(run)["mig"]["score"]
    few = tmp_path / "few.npz"
    np.savez(few, images=np.load(squares)["images"][:5])
    assert call("--checkpoint", run, "--encode", few, "--write-codes", path) == 0
    np.testing.assert_allclose(np.load(path)["codes"], arrays["codes"][:5], atol=1e-2)


def test_inactive_latents_count_as_constant(tmp_path, capsys):
    path, grid = write_codes(tmp_path / "codes.npz")
    logvar = np.zeros((len(grid), 5))
    logvar[:, :4] = -4
    codes = np.c_[grid, grid[:, 1] * 1e-3]  # the last one follows a factor at a small scale
    np.savez(path, codes=codes, sizes=np.array([3, 6, 40, 4]), logvar=logvar)
    arguments = ["--metrics", "mig", "mig.num_samples=2880"]
    scores = [scores_of(path, *arguments), scores_of(path, *arguments, "--min-kl", "0.05")]
    gaps = [score["mig"]["per_factor"]["factor1"] for score in scores]
    assert gaps[0] == pytest.approx(0, abs=1e-9)
    assert gaps[1] > 0.9
    assert "1 of 5 latents have less than 0.05 nats" in capsys.readouterr().out
    codes = np.c_[codes, grid[:, 0]]  # a category
    np.savez(path, codes=codes, sizes=np.array([3, 6, 40, 4]), logvar=logvar)
    assert "mig" in scores_of(path, *arguments, "--min-kl", "0.05")
    assert "1 of 6 latents have less than 0.05 nats" in capsys.readouterr().out
    np.savez(path, codes=codes, sizes=np.array([3, 6, 40, 4]))
    assert call("--codes", path, "--min-kl", "0.05") == 2
    assert "needs a posterior" in capsys.readouterr().err


# Codes of any model


def test_codes_of_any_model_are_scored(tmp_path):
    path, grid = write_codes(tmp_path / "codes.npz", names=np.array(list("abcd")))
    again, _ = write_codes(tmp_path / "again.npz", sizes=None, factors=grid)
    arguments = ["--metrics", "mig", "mig.num_samples=2880"]
    scores = [scores_of(file, *arguments)["mig"] for file in (path, again)]
    assert set(scores[0]["per_factor"]) == set("abcd")
    assert call("--codes", path, path, "--out", tmp_path / "o") == 2  # one would be lost
    assert scores[0]["score"] == scores[1]["score"] > 0.9


def test_columns_of_factors_are_read_as_asked(tmp_path):
    rng = np.random.default_rng(0)
    angle, kind = rng.integers(0, 3600, 20_000), rng.integers(0, 3, 20_000)
    path, factors = tmp_path / "codes.npz", np.c_[angle, kind]
    codes = factors + 0.01 * rng.normal(size=factors.shape)
    np.savez(path, codes=codes, factors=factors, names=["angle", "kind"])
    scores = {}
    for option in ("", "--continuous=angle", "--bins=angle=20", "--without=angle"):
        scores[option] = scores_of(path, "--metrics=mig", *filter(None, [option]))["mig"]
    assert "treated as 3587 classes" in scores[""]["note"]
    assert scores[""]["score"] < 0.8
    assert scores["--continuous=angle"]["score"] > 0.9
    assert scores["--bins=angle=20"]["score"] > 0.9
    assert set(scores["--without=angle"]["per_factor"]) == {"kind"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--codes", "none.npz"], "none.npz does not exist"),
        (["--codes", "README.md"], "is no npz file"),
        (["--checkpoint", "none"], "there is no checkpoint none"),
        (["--checkpoint", "runs/lr=0.1"], "there is no checkpoint runs/lr=0.1"),
        (["--checkpoint", "README.md"], "damaged or not a checkpoint"),
        (["--checkpoint", "none", "--metrics", "migg"], "did you mean 'mig'?"),
        (["--checkpoint", "none", "mig.num_bin=3"], "did you mean 'num_bins'?"),
        (["--checkpoint", "none", "mig.num_bins=0"], "mig.num_bins: 0"),
        (["--baseline", "pcaa"], "--baseline: 'pcaa' is not allowed; allowed: "),
    ],
)
def test_a_mistake_is_named(capsys, arguments, part):
    assert call(*arguments) == 2
    message = capsys.readouterr().err
    assert part in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"sizes": np.array([3, 6, 40, 5])}, "2880"),
        ({"factors": np.zeros((2880, 2))}, "one of the two"),
        ({"codes": None}, "needed: codes (N, D)"),
        ({"codes": np.full((2880, 2), np.nan)}, "NaN"),
        ({"names": np.array(list("abca"))}, "names"),
        ({"logvar": np.zeros((2880, 5))}, "logvar"),
    ],
)
def test_arrays_that_mean_nothing_are_named(tmp_path, capsys, arrays, part):
    path, _ = write_codes(tmp_path / "codes.npz", **arrays)
    assert call("--codes", path, "--metrics", "mig,mig_chen") == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_baselines_are_scored_like_models(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "BASELINE_SEEDS", 1)
    arguments = ["--baseline", "true_factors", "--metrics", "mig", "--out", tmp_path]
    assert call(*arguments) == 0
    score = scores_in(tmp_path / "true_factors/seed0")["mig"]["score"]
    assert score == pytest.approx(0.8955, abs=0.003)  # the ceiling of 20 bins
    pixels = evaluate.BASELINES["raw_pixels"](runs.load_dataset("dsprites"), 0)
    assert pixels[np.array([0, 5])].shape == (2, 4096)


def test_few_rows_are_scored_with_fewer_samples_and_drawn_again(tmp_path, capsys):
    path, grid = write_codes(tmp_path / "codes.npz")
    whole = ["--codes", path, "--metrics", "mig", "--out", tmp_path / "o", "mig.num_samples=2880"]
    assert call(*whole) == 0
    before = (tmp_path / "o/codes/metrics.json").read_bytes()
    assert call(*whole, "--samples", "auto") == 2  # would replace a score with other options
    assert (tmp_path / "o/codes/metrics.json").read_bytes() == before

    rows = np.random.default_rng(0).permutation(len(grid))[:1000]
    np.savez(path, codes=grid[rows] + 0.0, factors=grid[rows])
    arguments = ["--codes", path, "--metrics", "mig,factor_vae,sap,modularity"]
    arguments += ["--out", tmp_path / "few"]
    assert call(*arguments) == 1  # no score, which blocks nothing
    assert "mig.num_samples" in scores_in(tmp_path / "few/codes")["mig"]["reason"]
    gaps = []
    for bins in (20, 5):
        assert call(*arguments, "--samples", "auto", f"mig.num_bins={bins}") == 0
        scores = scores_in(tmp_path / "few/codes")
        assert all(entry["score"] is not None for entry in scores.values())
        gaps.append(scores["mig"]["score"])
    assert "note" in scores["mig"]
    assert gaps[0] != gaps[1]
    for bins in ("angle", "angle=1", "angle=1e1"):
        assert call(*arguments, "--bins", bins) == 2
        assert f"--bins: '{bins}' is not allowed" in capsys.readouterr().err
