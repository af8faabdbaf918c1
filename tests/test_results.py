"""Results: rows, means and tables from scores that are known."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import config
import reports
import results
from config.study import read_study

PUBLISHED = Path("res/twoD")
FRAME = pd.DataFrame(
    {
        "config": ["beta2"] * 3 + ["beta8"] * 3,
        "seed": [0, 1, 2] * 2,
        "beta_vae_paper": [0.5, 0.6, 0.7, 0.9, 0.9, 0.9],
        "mig": [0.1, 0.2, 0.6, 0.3, None, 0.5],
        "mutual_info_score": [0.25] * 6,
        "recon": [80, 81, 82] * 2,
        "images_seen": [2_000_000] * 6,
    }
)


@pytest.fixture(scope="module")
def published():
    return pd.read_csv(PUBLISHED / "results.csv")


def test_a_number_as_text():
    assert results.text(0.8147, 0.00551) == "0.815 ± 0.006"
    assert results.text(0.8147) == results.text(0.8147, math.nan) == "0.815"
    assert results.text(99.94999, 0.04, 1) == "99.9 ± 0.0"  # from the unrounded value
    assert results.text(-1e-9) == "0.000"
    assert results.text(None) == results.text(math.nan, 0.1) == "-"


def test_tables_hold_mean_standard_deviation_and_n():
    tables = reports.study_tables(FRAME, "beta2")
    header = "| configuration | n | images seen | MIG | β-VAE metric | recon, nats |"
    text = results.markdown(tables["all"]).splitlines()
    assert text == [
        header,
        "|---|---|---|---|---|---|",
        "| beta2 | 3 | 2,000,000 | 0.300 ± 0.265 | 0.600 ± 0.100 | 81.0 ± 1.0 |",
        "| beta8 | 3 | 2,000,000 | 0.400 ± 0.141 (n = 2) | 0.900 ± 0.000 | 81.0 ± 1.0 |",
    ]
    row = ["mutual info score (lower is better)", "0.250 ± 0.000", "0.250 ± 0.000"]
    assert tables["metrics"].rows == [row]
    assert tables["significance"].rows == [["beta8", "-", "0.100; 0.100"]]  # two have a MIG
    assert list(reports.study_tables(FRAME)) == ["all", "metrics"]


def test_the_best_mean_is_bold_but_for_a_decoder_that_is_given_geometry():
    given = FRAME[FRAME["config"] == "beta8"].assign(config="twoD_affine", mig=1.0)
    tables = reports.short_tables(pd.concat([FRAME, given]), papers={"paper": {"mig": 0.5}})
    rows = [row[3:] for row in tables["scores"].rows]
    assert rows[0] == ["0.300 ± 0.265", "0.600 ± 0.100"]
    assert rows[1] == ["**0.400 ± 0.141 (n = 2)**", "**0.900 ± 0.000**"]
    assert rows[2] == ["1.000 ± 0.000", "0.900 ± 0.000"]
    assert rows[3] == ["0.500", "-"]


def test_model_centrality_chooses_a_seed_of_each_configuration():
    frame = FRAME.assign(model_centrality=[0.5, 0.75, 0.25, 0.5, math.nan, 1.0])
    tables = reports.study_tables(frame)
    assert tables["all"].header[5:7] == ["ModelCentrality", "recon, nats"]
    assert tables["all"].rows[0][5] == "0.500 ± 0.250"
    rows = [row[:3] + row[4:] for row in tables["medoids"].rows]
    assert rows[0] == ["beta2", "1", "0.200", "0.750", "81.0"]
    assert rows[1] == ["beta8", "2", "0.500", "1.000", "82.0"]


def test_differences_from_a_baseline_by_hand():
    """Of 20 splits of three and three, 2 are as extreme as a perfect one, and 20 as ties of all.

    Of "c" the sums of ranks over "a" are 13 of 6 ... 15; 4 splits on each side are as extreme.
    Holm's factors are 3, 2 and 1 in the order of p, and the result never falls.
    """
    scores = {
        "a": [1, 2, 3],
        "b": [4, 5, 6],
        "c": [2.5, 3.5, 4.5],
        "d": [-1, -2, -3],
        "few": [9, 9],
    }
    rows = [(name, value, 0.5) for name, values in scores.items() for value in values]
    frame = pd.DataFrame(rows, columns=["config", "mig", "sap"])
    found = results.against_baseline(frame, "a", ["mig", "sap"]).set_index(["column", "config"])
    mig, sap = found.loc["mig"], found.loc["sap"]
    assert dict(mig["p"]) == pytest.approx({"b": 0.1, "d": 0.1, "c": 0.4 - 0.2})
    assert dict(mig["p_holm"]) == pytest.approx({"b": 0.3, "d": 0.3, "c": 0.3})
    assert dict(sap["p_holm"]) == {"b": 1, "c": 1, "d": 1}


def test_scores_of_models_as_text():
    first = {"mig": {"score": 0.25, "note": "few rows"}, "sap": {"score": None, "reason": "none"}}
    second = {"mig": {"score": 0.5, "note": "few rows"}, "mutual_info_score": {"score": 1 / 3}}
    lines = results.score_table({"vae": first, "gan": second}).splitlines()
    assert lines[0].split() == ["vae", "gan"]
    assert lines[1].split() == ["mig", "0.2500", "0.5000"]
    assert lines[2].split() == ["sap", "-", "-"]
    assert lines[3].startswith("mutual_info_score (lower is better)")
    assert lines[3].split()[-2:] == ["-", "0.3333"]
    assert lines[4:] == ["mig: few rows", "vae: sap: none"]
    many = results.score_table({f"run {i}": {"mig": {"score": i}} for i in range(8)}).splitlines()
    assert many[0].split() == ["mig"]
    assert many[8].split() == ["run", "7", "7.0000"]


def test_tables_between_markers_are_replaced():
    empty = "<!-- table: x --><!-- end -->"
    text = f"a <!-- table: x -->old<!-- end --> <!-- table: y -->2<!-- end -->{empty}"
    new = results.replace_tables(text, {"x": "| t |\n", "z": ""})
    block = "<!-- table: x -->\n\n| t |\n\n<!-- end -->"
    assert new == f"a {block} <!-- table: y -->2<!-- end -->{block}"
    assert results.replace_tables(new, {"x": "| t |\n"}) == new
    for text in "<!-- table: x -->", "<!-- table: x --><!-- table: y --><!-- end -->":
        with pytest.raises(ValueError, match="table: x -->' has no '<!-- end"):
            results.replace_tables(text, {})


@pytest.mark.parametrize("text", ["{", "[]", '{"scores": 1}', '{"scores": {"mig": {}}}'])
def test_damaged_scores_are_named(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.json is damaged"):
        results.read_scores(tmp_path)


def test_the_row_of_a_run(tmp_path):
    values = {"name": "vae", "seed": 3, "train": {"batch_size": 8}}
    start = {"commit": "0123"}
    (tmp_path / "run.json").write_text(json.dumps({"starts": [start], "train_seconds": 90}))
    (tmp_path / "log.csv").write_text("step,recon,kl\n2,90,1\n4,80,2.5\n")
    scores = {"sap": {"score": None}, "mig": {"score": 0.25}}
    (tmp_path / "metrics.json").write_text(json.dumps({"step": 4, "scores": scores}))
    frame = results.as_frame([results.read_run(tmp_path, values, 4)])
    columns = ["config", "seed", "mig", "sap", "udr", "model_centrality", "recon", "kl"]
    assert list(frame) == [*columns, "images_seen", "minutes", "commit"]
    row = frame.iloc[0].drop(["sap", *results.AGREEMENT])
    assert frame[["sap", *results.AGREEMENT]].isna().all(axis=None)
    assert list(row) == ["vae", 3, 0.25, 80, 2.5, 32, 1.5, "0123"]
    with pytest.raises(ValueError, match=f"{tmp_path} has no scores of step 6"):
        results.read_run(tmp_path, values, 6)


def test_published_rows_are_what_the_run_folders_hold(published):
    """All but AGREEMENT, which needs the models: `study.py report` writes it."""
    rows = []
    for name, seed in zip(published["config"], published["seed"], strict=True):
        folder = PUBLISHED / "runs" / name / f"seed{seed}"
        values = config.read_yaml(folder / "config.yaml")
        rows.append(results.read_run(folder, values, values["train"]["steps"]))
    frame = results.as_frame(rows)
    both = [one.drop(columns=results.AGREEMENT, errors="ignore") for one in (frame, published)]
    pd.testing.assert_frame_equal(*both)


def test_documents_hold_the_published_tables(published):
    """`study.py report config/studies/twoD.yaml` has written them."""
    study = config.read_yaml("config/studies/twoD.yaml")
    tables = reports.study_tables(published, study["baseline"])
    tables |= reports.short_tables(published, study["shown"], study["papers"])
    tables["twoD"] = tables["all"]
    tables["figure6"], _ = reports.figure6(pd.concat([reports.read_baselines(), published]))
    texts = {name: results.markdown(table) for name, table in tables.items()}
    documents = [path for pattern in study["documents"] for path in Path().glob(pattern)]
    for path in documents:
        text = path.read_text(encoding="utf-8")
        assert results.replace_tables(text, texts) == text, path
    assert any("<!-- table: scores -->" in path.read_text() for path in documents)


def test_figure_6_stands_beside_the_paper(published, tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "BASELINES", tmp_path)
    rows = reports.figure6(pd.concat([reports.read_baselines(), published]))[0].rows
    assert rows[0] == ["ground truth", "100.0 ± 0.0", "100", "3"]
    assert rows[2] == ["PCA", "86.2 ± 5.6", "84.9 ± 0.4", "3"]
    assert rows[-1] == ["β-VAE, main model", "99.1 ± 1.6", "99.23 ± 0.1", "5"]
    assert len(rows) == 11
    folder = tmp_path / "pca/seed1"  # a new evaluation replaces the published one
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"scores": {"beta_vae_paper": {"score": 0.5}}}')
    baselines = reports.read_baselines()
    assert list(baselines[baselines["config"] == "pca"]["beta_vae_paper"]) == [0.5]


def test_udr_compares_runs_by_their_active_latents():
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(500, 3))
    logvar = np.full((500, 3), [-4.0, -4.0, 0.0])
    noise = codes * [1, 1, 0]  # the third latent carries nothing: it does not count
    scores = results.agreement("udr", [(noise, logvar), (noise[:, [1, 0, 2]], logvar)])
    assert scores == pytest.approx([0.9, 0.9], abs=0.01)
    assert results.latent_kl(noise, logvar)[2] == 0
    rows = results.shared_rows(737_280)
    assert len(set(rows)) == 10_000


def test_charts_of_the_readme_show_names_without_links():
    frame, study = pd.read_csv(PUBLISHED / "results.csv"), read_study("config/studies/twoD.yaml")
    names = reports.plain(study["shown"])
    assert names["twoD"] == "β-VAE, main model"
    charts = reports.shown_charts(frame, {}, names, study["papers"])
    assert list(charts) == ["four_scores.png", "two_curves.png"]
    assert charts["four_scores.png"].startswith(b"\x89PNG")
