"""evaluate.py: checkpoints and plain codes in, table, JSON and pictures out."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch

import evaluate
import publish
import train
from metrics import METRICS
from training import load_checkpoint, save_checkpoint

FEW = [
    "beta_vae_paper.num_train=200",
    "beta_vae_paper.num_test=100",
    "beta_vae_paper.without=[]",
    "factor_vae.num_train=200",
    "factor_vae.num_test=100",
    "factor_vae.num_variance=48",
    "mig.num_samples=48",
]


@pytest.fixture
def run(command, tmp_path):
    assert train.main(command("config/twoD.yaml")) == 0
    return tmp_path / "runs/small/seed0"


def test_a_run_is_scored_and_drawn(run, capsys):
    assert evaluate.main(["--checkpoint", str(run), "--device", "cpu", *FEW]) == 0
    scores = json.loads((run / "metrics.json").read_text())
    assert list(scores) == ["beta_vae_paper", "factor_vae", "mig"]
    assert scores["mig"]["settings"]["num_samples"] == 48
    assert set(scores["mig"]["per_factor"]) == {"size", "posX", "posY"}
    assert all(0 <= entry["score"] <= 1 for entry in scores.values())
    assert f"{scores['mig']['score']:.4f}" in capsys.readouterr().out
    for name in ("fixed.png", "random.png", "traversal.gif", "matrix_mig.png"):
        assert (run / name).stat().st_size > 0


def test_a_published_checkpoint_gives_the_scores_of_its_run(run, tmp_path):
    out = tmp_path / "res"
    publish.publish(run, "small", out)
    results = []
    for path in (run, out / "small.pt"):
        arguments = ["--checkpoint", str(path), "--out", str(tmp_path / "o"), "--device", "cpu"]
        assert evaluate.main([*arguments, *FEW]) == 0
        results.append(without_seconds(json.loads((tmp_path / "o/metrics.json").read_text())))
    assert results[0] == results[1]


def test_what_is_scored_is_not_scored_again(run, monkeypatch, capsys):
    capsys.readouterr()
    arguments = ["--checkpoint", str(run), "--device", "cpu", *FEW]
    assert evaluate.main(arguments) == 0
    first = capsys.readouterr().out.splitlines()

    def never(*args):
        raise AssertionError("scored again")

    monkeypatch.setattr(evaluate, "_score", never)
    assert evaluate.main(arguments) == 0
    again = capsys.readouterr().out.splitlines()
    assert "scored before" in again[0]
    assert str(run / "metrics.json") in again[0]
    assert again[1:] == first[1:]
    assert evaluate.main([*arguments, "--seed", "1"]) == 2  # other draws would replace these
    with pytest.raises(AssertionError, match="scored again"):
        evaluate.main([*arguments, "--seed", "1", "--out", str(run / "other")])


def test_scores_of_something_else_are_neither_taken_nor_written_over(run, tmp_path, capsys):
    arguments = ["--checkpoint", str(run), "--device", "cpu", *FEW]
    assert evaluate.main(arguments) == 0
    scores = json.loads((run / "metrics.json").read_text())
    path, _ = write_codes(tmp_path / "codes.npz")
    capsys.readouterr()
    assert evaluate.main(["--codes", str(path), "--metrics", "mig", "--out", str(run)]) == 2
    assert f"--out: {run} has the scores of a run" in capsys.readouterr().err
    assert json.loads((run / "metrics.json").read_text()) == scores
    (run / "metrics.json").write_text(json.dumps(scores | {"mig": {"score": 1.0}}))  # by hand
    assert evaluate.main(arguments) == 0
    again = json.loads((run / "metrics.json").read_text())
    assert again["mig"]["score"] == scores["mig"]["score"]
    (run / "evaluation.json").write_text("[]")  # by hand
    assert evaluate.main([*arguments, "--out", str(run)]) == 0
    of_codes = tmp_path / "of_codes"
    assert evaluate.main(["--codes", str(path), "--metrics", "mig", "--out", str(of_codes)]) == 0
    before = (of_codes / "metrics.json").read_bytes()
    assert evaluate.main([*arguments, "--out", str(of_codes)]) == 2
    assert f"--out: {of_codes} has scores of other kind" in capsys.readouterr().err
    assert (of_codes / "metrics.json").read_bytes() == before


def test_scores_by_an_older_metric_are_dropped_aloud_and_by_other_settings_not_at_all(run, capsys):
    arguments = ["--checkpoint", str(run), "--device", "cpu", *FEW]
    assert evaluate.main([*arguments, "--metrics", "mig,irs", "irs.num_bins=2"]) == 0
    facts = json.loads((run / "evaluation.json").read_text())
    assert list(facts["metrics_sha256"]) == ["mig", "irs"]
    facts["metrics_sha256"]["mig"] = "0"
    (run / "evaluation.json").write_text(json.dumps(facts))
    before = (run / "metrics.json").read_bytes()
    assert evaluate.main([*arguments, "--metrics", "mig", "--seed", "7", "irs.num_bins=2"]) == 2
    assert (run / "metrics.json").read_bytes() == before
    capsys.readouterr()
    assert evaluate.main([*arguments, "--metrics", "mig", "irs.num_bins=2"]) == 0
    said = "scores by another version of the metric are dropped: mig"
    assert f"{run / 'metrics.json'}: {said}\n" in capsys.readouterr().out
    assert list(json.loads((run / "metrics.json").read_text())) == ["mig", "irs"]
    facts["metrics_sha256"] = "0"  # of all metrics together
    (run / "evaluation.json").write_text(json.dumps(facts))
    (run / "metrics.json").write_bytes(before)
    assert evaluate.main([*arguments, "--metrics", "mig", "irs.num_bins=2"]) == 0
    assert list(json.loads((run / "metrics.json").read_text())) == ["mig"]


def test_scores_of_other_data_are_dropped_aloud(command, squares, tmp_path, capsys):
    own = tmp_path / "own.npz"
    shutil.copy(squares, own)
    assert train.main(command("config/twoD_vae.yaml", f"dataset.path={own}")) == 0
    run = tmp_path / "runs/small/seed0"
    arguments = ["--checkpoint", str(run), "--device", "cpu", "--metrics", "mig", *FEW[-1:]]
    assert evaluate.main(arguments) == 0
    arrays = dict(np.load(own))
    np.savez(own, **(arrays | {"sizes": (4, 3, 4), "names": np.array(["a", "b", "c"])}))
    capsys.readouterr()
    assert evaluate.main(arguments) == 0
    assert "scores of other data are dropped: mig" in capsys.readouterr().out
    assert set(json.loads((run / "metrics.json").read_text())["mig"]["per_factor"]) == set("abc")
    np.savez(own, **(arrays | {"images": arrays["images"][..., None].repeat(3, -1)}))
    assert evaluate.main(arguments) == 2
    error = capsys.readouterr().err
    assert "was trained on images of [1, 64, 64], but the data set now has images of [3," in error


def test_log_variances_are_no_setting(monkeypatch, tmp_path):
    def mine(codes, factors, rng, *, logvar: np.ndarray | None = None, power: float = 2.0):
        return METRICS["mig"](codes, factors, rng)

    monkeypatch.setitem(METRICS, "mine", mine)
    path, _ = write_codes(tmp_path / "codes.npz")
    assert evaluate.main(["--codes", str(path), "--metrics", "mine", "mine.power=1.5"]) == 0
    assert evaluate.main(["--codes", str(path), "--metrics", "mine", "mine.logvar=1.5"]) == 2


def test_files_of_one_name_do_not_share_a_folder(run, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(run / "checkpoint.pt", tmp_path / folder / "vae.pt")
    paths = [str(tmp_path / folder / "vae.pt") for folder in ("a", "b")]
    assert evaluate.main(["--checkpoint", *paths, "--device", "cpu"]) == 2
    assert f"{paths[0]} and {paths[1]} would share" in capsys.readouterr().err


def test_a_reason_names_its_model_where_others_have_another():
    why = {"mig_chen": {"score": None, "reason": "no posterior"}}
    lines = evaluate.table({"gan": why, "vae": {"mig_chen": {"score": 0.5}}}).splitlines()
    assert lines[-1] == "gan: mig_chen: no posterior"
    assert evaluate.table({"gan": why}).splitlines()[-1] == "mig_chen: no posterior"


def test_scores_are_filed_under_the_weights_that_were_read(run):
    old = hashlib.sha256((run / "checkpoint.pt").read_bytes()).hexdigest()
    loaded = next(evaluate.load_runs([run], "cpu"))
    save_checkpoint(run / "checkpoint.pt", load_checkpoint(run) | {"step": 5})  # it trains on
    assert evaluate.asked(loaded, {})["checkpoint_sha256"] == old


def test_a_large_published_checkpoint_is_small_and_still_the_same_model(command, tmp_path):
    assert train.main(command("config/twoD_infogan.yaml", "train.precision=fp32")) == 0
    publish.publish(tmp_path / "runs/small/seed0", "gan", tmp_path)
    assert (tmp_path / "gan.pt").stat().st_size < 10e6
    x, codes, images = (torch.rand(8, 1, 64, 64) > 0.9).float(), [], []
    for path in (tmp_path / "runs/small/seed0", tmp_path / "gan.pt"):
        model = evaluate.model_of(load_checkpoint(path), path, torch.device("cpu"))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        codes.append(model.encode(x))
        images.append(model.decode(torch.zeros(1, 5)))
    torch.testing.assert_close(*codes, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(*images, atol=5e-3, rtol=0)


def test_a_run_on_pictures_without_factors_is_drawn(command, squares, tmp_path, capsys):
    own = tmp_path / "own.npz"
    np.savez(own, images=np.load(squares)["images"])
    assert train.main(command("config/twoD.yaml", f"dataset={{name: npz, path: {own}}}")) == 0
    run, out = tmp_path / "runs/small/seed0", tmp_path / "drawn"
    arguments = ["--checkpoint", str(run), "--out", str(out), "--device", "cpu"]
    (tmp_path / "old.json").write_text("old scores")
    assert evaluate.main([*arguments, "--json", str(tmp_path / "old.json")]) == 0
    assert (tmp_path / "old.json").read_text() == "old scores"
    assert "has no factors to score" in capsys.readouterr().out
    assert (out / "fixed.png").exists()


def without_seconds(scores):
    return {k: {n: v for n, v in e.items() if n != "seconds"} for k, e in scores.items()}


def test_several_runs_give_mean_and_spread_by_configuration(command, run, tmp_path, capsys):
    assert train.main(command("config/twoD.yaml", "seed=1")) == 0
    paths = [str(run), str(run.parent / "seed1")]
    json_path = tmp_path / "all.json"
    arguments = ["--checkpoint", *paths, "--json", str(json_path), "--device", "cpu"]
    assert evaluate.main([*arguments, *FEW]) == 0
    report = json.loads(json_path.read_text())
    values = [report["runs"][path]["scores"]["mig"]["score"] for path in paths]
    summary = report["summary"]["small"]["mig"]
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["spread"] == pytest.approx(np.std(values, ddof=1))
    assert report["runs"][paths[0]]["images_seen"] == 4 * 8
    assert "small  mig:" in capsys.readouterr().out


def write_codes(path, **arrays):
    grid = np.stack(np.unravel_index(np.arange(3 * 6 * 40 * 4), (3, 6, 40, 4)), axis=1)
    arrays = {"codes": grid + 0.0, "sizes": np.array([3, 6, 40, 4])} | arrays
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path, grid


def test_codes_of_any_model_are_scored(tmp_path):
    path, grid = write_codes(tmp_path / "codes.npz", names=np.array(list("abcd")))
    out = tmp_path / "scores.json"
    arguments = ["--codes", str(path), "--metrics", "mig", "mig.num_samples=2880"]
    assert evaluate.main([*arguments, "--json", str(out)]) == 0
    scores = json.loads(out.read_text())
    assert set(scores["mig"]["per_factor"]) == set("abcd")
    assert scores["mig"]["score"] > 0.9
    again, _ = write_codes(tmp_path / "again.npz", sizes=None, factors=grid, names=None)
    arguments[1] = str(again)
    assert evaluate.main([*arguments, "--json", str(out)]) == 0
    assert json.loads(out.read_text())["mig"]["score"] == scores["mig"]["score"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--codes", "none.npz"], "there is no file none.npz"),
        (["--checkpoint", "none"], "there is no checkpoint none"),
        (["--checkpoint", "README.md"], "damaged or not a checkpoint"),
        (["--checkpoint", "none", "--metrics", "migg"], "did you mean 'mig'?"),
        (["--checkpoint", "none", "mig.num_bin=3"], "did you mean 'num_bins'?"),
        (["--checkpoint", "none", "--seed", "-1"], "--seed: -1"),
    ],
)
def test_a_mistake_is_named(capsys, arguments, part):
    assert evaluate.main(arguments) == 2
    message = capsys.readouterr().err
    assert part in message
    assert "Traceback" not in message


def test_what_a_table_cannot_show_is_said(tmp_path, capsys):
    rng = np.random.default_rng(0)
    factors = np.c_[rng.integers(0, 3, (2000, 2)), np.ones(2000, dtype=int)]
    arrays = {"codes": factors + 0.1 * rng.normal(size=factors.shape), "factors": factors}
    path = tmp_path / "codes.npz"
    metrics = "beta_vae_paper,gaussian_total_correlation"
    call = ["--codes", str(path), "--metrics", metrics, *FEW[:2]]
    call.append("gaussian_total_correlation.num_samples=2000")
    for names, said in ((None, True), (["shape", "b", "c"], False)):
        np.savez(path, **arrays, **({"names": names} if names else {}))
        assert evaluate.main(call) == 0
        out = capsys.readouterr().out
        assert ("beta_vae_paper: no factor is called shape" in out) == said
        assert f"not scored, of one value: {'c' if names else 'factor 2'}" in out
        assert "gaussian_total_correlation (lower is better)" in out


def test_codes_that_do_not_fit_are_named(tmp_path, capsys):
    path, _ = write_codes(tmp_path / "a.npz", sizes=np.array([3, 6, 40, 5]))
    assert evaluate.main(["--codes", str(path)]) == 2
    assert "make 3600 combinations, but codes has 2880 rows" in capsys.readouterr().err
    path, _ = write_codes(tmp_path / "b.npz", sizes=None)
    assert evaluate.main(["--codes", str(path)]) == 2
    assert "must hold 'codes' and either 'factors' or 'sizes'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"sizes": np.array([-3, -6, 160])}, "sizes [-3, -6, 160] is not a list of integers"),
        ({"sizes": np.array([3.5, 6.0, 160.0])}, "sizes [3.5, 6.0, 160.0] is not a list"),
        ({"sizes": np.array([[3, 6], [40, 4]])}, "is not a list of integers from 1 on"),
        ({"sizes": np.full(70, 3)}, "combinations, but codes has 2880 rows"),
        ({"factors": np.zeros((2880, 2))}, "either 'factors' or 'sizes'"),
        ({"codes": np.array(1.0)}, "codes has shape ()"),
        ({"codes": np.full((2880, 2), 1e300)}, "codes has the value 1e+300"),
        ({"names": np.array("abcd")}, "names has shape ()"),
        ({"names": np.array(list("abca"))}, "names of factors must differ: a, b, c, a"),
        ({"names": np.array([b"a", b"b", b"c"])}, "3 names for 4 factors"),
        ({"logvar": np.zeros((2880, 3))}, "logvar has shape (2880, 3)"),
        ({"logvar": np.full((2880, 4), np.nan)}, "logvar has NaN or infinity"),
        ({"logvar": np.full((2880, 4), 3000.0)}, "values up to 3000; (2880, 4) like its codes"),
    ],
)
def test_arrays_that_mean_nothing_are_named(tmp_path, capsys, arrays, part):
    path, _ = write_codes(tmp_path / "codes.npz", **arrays)
    assert evaluate.main(["--codes", str(path), "--metrics", "mig"]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "setting",
    [
        "sap.num_train=-1",
        "factor_vae.num_test=0",
        "factor_vae.batch_size=1",
        "beta_vae_paper.classifier_seeds=0",
        "beta_vae_paper.num_pairs=0",
        "irs.num_bins=1",
        "irs.quantile=1.5",
        "mig.num_bins=0",
        "infom.neighbours=0",
        "dci_fast.num_train=0",
    ],
)
def test_a_setting_out_of_range_is_named_before_any_work(capsys, setting):
    assert evaluate.main(["--codes", "none.npz", setting]) == 2
    error = capsys.readouterr().err
    assert setting.split("=")[0] in error
    assert error.count("\n") == 1


def test_what_cannot_be_written_or_repeated_is_refused_before_any_work(tmp_path, capsys):
    assert evaluate.main(["--codes", "none.npz", "--json", str(tmp_path)]) == 2
    assert f"--json: {tmp_path} is not a file to write" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe")
    assert evaluate.main(["--codes", "none.npz", "--json", str(tmp_path / "pipe")]) == 2
    assert "pipe is not a file to write" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()
    assert evaluate.main(["--codes", "none.npz", "--repeats", "0"]) == 2
    assert "--repeats: 0 is not allowed" in capsys.readouterr().err


def test_latents_below_a_kl_count_as_constant(tmp_path, capsys):
    factors = np.stack(np.unravel_index(np.arange(2000) % 20, (4, 5)), 1)
    live = factors / (1.5, 2.0) - 1  # one each, and copies that the decoder would not see
    kl = 0.5 * ((live[:, 0] ** 2).mean() + np.exp(-4) - 1 + 4)
    path, out = tmp_path / "codes.npz", tmp_path / "out.json"
    logvar = np.tile([-4.0, -4.0, -1e-4, -1e-4], (2000, 1))
    np.savez(path, codes=np.c_[live, 0.01 * live], factors=factors, logvar=logvar)
    command = ["--codes", str(path), "--metrics", "mig", "--json", str(out), "mig.num_samples=2000"]

    def score(*arguments):
        assert evaluate.main([*command, *arguments]) == 0
        return json.loads(out.read_text())["mig"]

    all_count = score()
    assert all_count["score"] == pytest.approx(0, abs=1e-9)
    assert "min_kl" not in all_count
    found = score("--min-kl", "0.05")
    assert found["score"] == pytest.approx(1, abs=1e-3)  # a finite sample gives chance its share
    assert np.allclose(np.array(found["matrix"]["values"])[2:], 0)
    assert found["min_kl"] == 0.05
    assert "2 of 4 latents have less than 0.05 nats" in capsys.readouterr().out
    found = score("--min-kl", f"{kl - 0.01}")["per_factor"]  # that of factor 1 is .03 lower
    assert (found["factor 0"], found["factor 1"]) == pytest.approx((1, 0), abs=1e-2)

    np.savez(path, codes=live, factors=factors)
    for arguments, part in [
        (["0.05"], "needs a posterior"),
        (["0"], "--min-kl: 0.0 is not allowed"),
        (["nan"], "--min-kl: nan is not allowed"),
    ]:
        assert evaluate.main([*command, "--min-kl", *arguments]) == 2
        assert part in capsys.readouterr().err
    np.savez(path, codes=live, factors=factors, logvar=np.zeros_like(live))
    assert score("--min-kl", "9")["score"] is None
    assert "no latent has 9 nats; the largest KL is" in capsys.readouterr().out
    big_endian = [array.astype(">f8") for array in (live, np.full_like(live, -4.0))]
    np.savez(path, codes=big_endian[0], factors=factors, logvar=big_endian[1])
    assert score("--min-kl", "0.05")["score"] > 0.9
    integers, wide = np.array([[100], [-100]], dtype=np.int8), np.zeros((2, 1), dtype=np.float32)
    assert evaluate.without_dead(integers, wide, 100.0)[0].tolist() == [[100], [-100]]
    codes, logvar = evaluate.without_dead(np.array([[1.0, 9], [1, 9]]), np.full((2, 2), -1.0), 5.0)
    assert codes.tolist() == [[0, 9], [0, 9]]
    assert logvar.tolist() == [[0, -1], [0, -1]]  # the prior's: MIG of sampled codes reads it too


def test_scores_of_live_latents_are_not_kept_for_those_of_all(run, capsys):
    command = ["--checkpoint", str(run), "--device", "cpu", *FEW]
    assert evaluate.main(command) == 0
    before = (run / "metrics.json").read_bytes()
    capsys.readouterr()
    assert evaluate.main([*command, "--min-kl", "1e-9"]) == 2
    assert "--min-kl: a folder of its own is needed" in capsys.readouterr().err
    assert evaluate.main([*command, "--min-kl", "1e-9", "--out", str(run)]) == 2
    assert "metrics.json has scores with min_kl None" in capsys.readouterr().err
    assert evaluate.main([*command, "--min-kl", "1e-9", "--out", str(run / "live")]) == 0
    assert (run / "metrics.json").read_bytes() == before
    capsys.readouterr()
    assert evaluate.main(command) == 0
    assert "scored before" in capsys.readouterr().out


def test_matrices_of_codes_are_drawn(tmp_path):
    path, _ = write_codes(tmp_path / "codes.npz", names=np.array([b"a", b"b", b"c", b"d"]))
    settings = ["dci_fast.num_train=200", "dci_fast.num_test=100"]
    arguments = ["--codes", str(path), "--metrics", "mig,dci_fast", *settings]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"metrics.json", "matrix_mig.png", "matrix_dci_fast_disentanglement.png"}
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(scores["mig"]["per_factor"]) == set("abcd")


def test_runs_are_compared_by_what_their_posteriors_carry():
    rng = np.random.default_rng(0)
    shared, logvar = rng.normal(size=(2000, 2)), np.tile([-4.0, -4.0, -0.01, -0.01], (2000, 1))
    runs = [(np.c_[shared, 0.08 * rng.normal(size=(2000, 2))], logvar) for _ in range(2)]
    found = evaluate.agreement(runs, seed=0)
    assert found["mean"] == pytest.approx(0.9, abs=0.02)  # what a Lasso of strength .1 leaves
    assert found["protocol"] == "Duan et al. 2020, lasso"
    without = evaluate.agreement([(codes, None) for codes, _ in runs], seed=0)
    assert without["mean"] < 0.6
