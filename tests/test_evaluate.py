"""evaluate.py: checkpoints and plain codes in, table, JSON and pictures out."""

import json

import numpy as np
import pytest
import torch

import evaluate
import publish
import train
from training import load_checkpoint

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
    with pytest.raises(AssertionError, match="scored again"):  # other draws
        evaluate.main([*arguments, "--seed", "1"])


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
    assert evaluate.main(arguments) == 0
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


def test_codes_that_do_not_fit_are_named(tmp_path, capsys):
    path, _ = write_codes(tmp_path / "a.npz", sizes=np.array([3, 6, 40, 5]))
    assert evaluate.main(["--codes", str(path)]) == 2
    assert "make 3600 combinations, but codes has 2880 rows" in capsys.readouterr().err
    path, _ = write_codes(tmp_path / "b.npz", sizes=None)
    assert evaluate.main(["--codes", str(path)]) == 2
    assert "must hold 'codes' and 'factors' or 'sizes'" in capsys.readouterr().err
