"""Figure 6: representations that need no training, and the tables of the README."""

import json
from dataclasses import replace

import numpy as np
import pytest

import figure6
from data import load_dataset

SETTINGS = {"beta_vae_paper": {"num_train": 300, "num_test": 100}}


@pytest.fixture(scope="module")
def data(squares):
    return load_dataset("npz", path=str(squares))


@pytest.fixture(scope="module")
def small(data):
    """Every fourth row and column: a covariance matrix of 4,096 pixels takes 10 s to take apart."""
    return replace(data, images=data.images[:, :, ::4, ::4])


@pytest.mark.parametrize("name", figure6.REPRESENTATIONS)
def test_a_representation_has_a_row_an_image_and_depends_on_its_seed_alone(data, small, name):
    data = small if name in ("PCA", "ICA") else data
    first, again = (figure6.REPRESENTATIONS[name](data, 3) for _ in range(2))
    assert first.shape[0] == len(data)
    some = np.array([0, 7, 47])
    rows = np.asarray(first[some])
    assert rows.shape == (3, first.shape[1])
    assert np.isfinite(rows).all()
    assert np.array_equal(rows, again[some])
    assert np.abs(rows - rows.mean(axis=0)).max() > 0


def test_components_span_the_pixels(small):
    """Distances between images survive where ten components explain the set (48 squares)."""
    pixels = figure6.RawPixels(small, 0)[np.arange(len(small))]
    codes = figure6.pca(small, 0)
    assert codes.shape == (48, figure6.COMPONENTS)
    exact = np.linalg.svd(pixels - pixels.mean(axis=0), compute_uv=False)
    kept = (exact[: figure6.COMPONENTS] ** 2).sum() / (exact**2).sum()
    assert codes.var(axis=0).sum() / pixels.var(axis=0).sum() == pytest.approx(kept, abs=0.02)


def test_tables_hold_ours_beside_the_paper():
    score = {"mean": 0.5, "spread": 0.125, "n": 3}
    rows = {"PCA": {"beta_vae_paper": score, "mig": score}, "raw pixels": {"beta_vae_paper": score}}
    rows["InfoGAN, spectral norm"] = {"beta_vae_paper": score | {"spread": None}, "sap": score}
    lines = figure6.tables(rows).splitlines()
    assert "| PCA | 50.0 ± 12.5 | 84.9 ± 0.4 | 3 |" in lines
    assert "| InfoGAN, spectral norm | 50.0 | 73.5 ± 0.9 | 3 |" in lines
    # raw pixels have one score alone
    assert "| metric | PCA | InfoGAN, spectral norm | protocol |" in lines
    assert "| mig | 0.500 ± 0.125 | - | - |" in lines
    assert "| sap | - | 0.500 ± 0.125 | - |" in lines
    rows["PCA"]["sap"] = score | {"n": 2}
    rows["PCA"]["sap"]["protocol"] = "its protocol"
    line = "| sap | 0.500 ± 0.125 (n = 2) | 0.500 ± 0.125 | its protocol |"
    assert line in figure6.tables(rows)
    assert "| my_own | 50.0 ± 12.5 | - | 3 |" in figure6.tables({"my_own": rows["raw pixels"]})


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"mig": {}}', '{"summary": []}', '{"summary": {"a": {"mig": {}}}}'),
        '{"summary": {"a": {"beta_vae_paper": 0.9}}}',
        '{"summary": {"a": {"beta_vae_paper": {"n": 3}}}}',
        '{"summary": {"a": {"beta_vae_paper": {"mean": "x", "n": 3}}}}',
        '{"summary": {"a": {"beta_vae_paper": {"mean": null, "n": 3}}}}',
        '{"summary": {"a": {"beta_vae_paper": {"mean": 0.9}}}}',
    ],
)
def test_a_json_of_something_else_is_refused(tmp_path, capsys, text):
    path = tmp_path / "metrics.json"
    path.write_text(text)
    assert figure6.main(["--scores", str(path), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"figure6.py: --scores: {path}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("names", "row"), [(["PCA"], "PCA"), (["VAE", "twoD_vae"], "VAE")])
def test_a_row_is_not_replaced_by_a_configuration_of_its_name(
    tmp_path, capsys, monkeypatch, names, row
):
    monkeypatch.setattr(figure6, "score_representations", lambda *_: pytest.fail("it has begun"))
    path = tmp_path / "metrics.json"
    score = {"beta_vae_paper": {"mean": 0.9, "spread": 0.1, "n": 3}}
    path.write_text(json.dumps({"summary": dict.fromkeys(names, score)}))
    assert figure6.main(["--scores", str(path), "--out", str(tmp_path)]) == 2
    assert f"is the row '{row}', which is there already" in capsys.readouterr().err


def test_a_missing_json_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "metrics.json"
    assert figure6.main(["--scores", str(path), "--out", str(tmp_path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_everything_is_written_in_one_go(small, tmp_path, monkeypatch):
    runs = {"twoD": {"beta_vae_paper": {"mean": 0.9, "spread": 0.1, "n": 3}}}
    (tmp_path / "metrics.json").write_text(json.dumps({"summary": runs}))
    one = {"spread": None, "n": 1}
    scored = {"own": {"name": "own", "scores": {"mig": {"score": 0.25, "protocol": "binned"}}}}
    more = {"beta_vae_paper": one | {"mean": 0.5}, "mig": one | {"mean": 0.25}}
    report = {"summary": {"twoD": more, "own": more}, "runs": scored}
    (tmp_path / "more.json").write_text(json.dumps(report))
    monkeypatch.setattr(figure6, "load_dataset", lambda name: small)
    monkeypatch.setattr(figure6, "metric_settings", lambda path, overrides: SETTINGS)
    monkeypatch.setattr(figure6, "SCORED", ["beta_vae_paper", "modularity"])
    monkeypatch.setattr(figure6, "REPRESENTATIONS", {"PCA": figure6.pca})
    files = [str(tmp_path / name) for name in ("metrics.json", "more.json")]
    assert figure6.main(["--scores", *files, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "figure6.json").read_text())
    assert rows["PCA"]["modularity"]["n"] == figure6.SEEDS
    assert rows["beta-VAE"]["beta_vae_paper"]["mean"] == 0.9  # of the first file
    assert rows["beta-VAE"]["mig"]["mean"] == 0.25
    assert rows["own"]["beta_vae_paper"]["mean"] == 0.5
    assert rows["own"]["mig"]["protocol"] == "binned"
    assert (tmp_path / "figure6.md").read_text() == figure6.tables(rows)
    assert (tmp_path / "figure6.png").stat().st_size > 0


def test_what_is_scored_is_kept(data, tmp_path, monkeypatch):
    """A call that was cut off goes on with the next score and ends as one that was not."""
    kept, straight, drawn = tmp_path / "kept.json", tmp_path / "straight.json", []

    def represent(data, seed):
        drawn.append(seed)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return figure6.true_factors(data, seed)

    monkeypatch.setattr(figure6, "metric_settings", lambda path, overrides: SETTINGS)
    monkeypatch.setattr(figure6, "SCORED", ["beta_vae_paper", "modularity"])
    monkeypatch.setattr(figure6, "REPRESENTATIONS", {"PCA": represent})
    with pytest.raises(KeyboardInterrupt):
        figure6.score_representations(lambda name: data, kept)
    rows = figure6.score_representations(lambda name: data, kept)
    assert drawn == [0, 1, 1, 2]

    def refuse(name):
        raise ValueError("data is read")

    assert figure6.score_representations(refuse, kept) == rows
    assert figure6.score_representations(lambda name: data, straight) == rows
    assert kept.read_text() == straight.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(figure6, "FITTED", 5)
        with pytest.raises(ValueError, match="data is read"):
            figure6.score_representations(refuse, kept)
    monkeypatch.setattr(figure6, "SCORED", ["beta_vae_paper", "mig"])  # made otherwise: anew
    assert set(figure6.score_representations(lambda name: data, kept)["PCA"]) == {
        "beta_vae_paper",
        "mig",
    }
    for text in "[]", "{", '{"scores": {}':
        kept.write_text(text)
        with pytest.raises(ValueError, match=r"not what figure6\.py writes"):
            figure6.score_representations(lambda name: data, kept)
