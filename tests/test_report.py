"""report.py: tables, charts and pages of many runs, from scores that are known."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from scipy.stats import norm

import config
import evaluate
import figures.study
import publish
import report
import train
from figures.html import LIMIT, VALUES, Table, run_page
from metrics import code_of
from metrics.study import choices, directed, families, significance
from models import build_model
from training import load_checkpoint, save_checkpoint

SCORES = {  # configuration -> metric -> the score of each seed
    "beta2": {"beta_vae_paper": [0.5, 0.6, 0.7], "mig": [0.1, 0.2, 0.6]},
    "beta8": {"beta_vae_paper": [0.9, 0.9, 0.9], "mig": [0.3, None, 0.5]},
}
UDR = {"beta2": [0.2, 0.9, 0.4], "beta8": [0.8, 0.1, 0.1]}
SOME = "res/2dshapes/vae4.pt"
METRICS = ["--metrics", "beta_vae_paper,mig", "--device", "cpu"]


def make_run(runs, squares, name, seed, *, scores=None, step=4):
    """A run folder with weights that nobody trained and, if given, scores that nobody computed."""
    folder = runs / name / f"seed{seed}"
    folder.mkdir(parents=True)
    values = train.resolve(
        "config/twoD_vae.yaml",
        [
            f"dataset={{name: npz, path: {squares}}}",
            f"objective={{name: beta_vae, beta: {name.removeprefix('beta')}}}",
            *("model.latent_dim=3", "train.steps=4", "train.batch_size=8", "train.device=cpu"),
            *(f"name={name}", f"seed={seed}"),
        ],
    )
    torch.manual_seed(seed)
    model = build_model((1, 64, 64), values["model"], values["objective"])
    state = {"config": values, "image_shape": [1, 64, 64], "model": model.state_dict()}
    save_checkpoint(folder / "checkpoint.pt", state | {"step": step})
    (folder / "log.csv").write_text(f"step,images,recon,kl\n2,16,90,1\n4,32,{80 + seed},2.5\n")
    start = {"command": f"python train.py seed={seed}", "commit": "0123456789abcdef"}
    start["hardware"] = {"cpu": "abacus", "cores": 2, "torch": "2"}
    (folder / "run.json").write_text(json.dumps({"starts": [start], "train_seconds": 120.0}))
    if scores:
        entries = {key: {"score": score, "reason": ""} for key, score in scores.items()}
        entries["mig"]["matrix"] = {
            "kind": "nats",
            "factors": ["size", "posX"],
            "values": [[0.9, 0.1], [0.0, 0.5], [0.0, 0.0]],
        }
        text = evaluate.write_json(folder / "metrics.json", entries)
        run = next(evaluate.load_runs([folder], "cpu"))
        facts = evaluate.asked(run, asked()) | {"scores_sha256": hashlib.sha256(text).hexdigest()}
        facts["metrics_sha256"] = {key: code_of(key) for key in scores}
        (folder / "evaluation.json").write_text(json.dumps(facts))
    return folder


def asked():
    settings = evaluate.metric_settings(evaluate.DEFAULT_CONFIG, [])
    keys = ["beta_vae_paper", "mig"]
    return {"metrics": keys, "seed": 0, "repeats": 1, "settings": settings}


def never(*arguments):
    raise AssertionError("scored again")


@pytest.fixture(scope="module")
def runs(squares, tmp_path_factory):
    """Two configurations of three seeds, scored, and a fourth seed that is not finished."""
    runs = tmp_path_factory.mktemp("runs")
    for name, metrics in SCORES.items():
        for seed in range(3):
            scores = {key: values[seed] for key, values in metrics.items()}
            make_run(runs, squares, name, seed, scores=scores)
    make_run(runs, squares, "beta2", 3, step=2)
    return runs


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    """The folder that report.py has written for them, and what it printed."""
    out = tmp_path_factory.mktemp("out")
    printed = io.StringIO()
    found = iter(UDR.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_score", never)
        patch.setattr(report, "PICTURE_IMAGES", 64)
        patch.setattr(report, "agreement", lambda *_: {"mean": 0.5, "scores": next(found)})
        patch.setattr("sys.stdout", printed)
        paths = [str(runs / name / f"seed{seed}") for name in SCORES for seed in range(3)]
        paths.append(str(runs / "beta2/seed3"))
        assert report.main(["--checkpoint", *paths, "--out", str(out), *METRICS]) == 0
    return out, printed.getvalue()


def test_panels_of_scores_span_their_range_and_say_where_low_is_good(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures.study, "save_chart", lambda figure, path: drawn.append(figure))
    columns = {
        "mig": [-2e-16, 0.6],
        "sap": [0.01, 0.2],
        "mutual_info_score": [0.1, 2.0],
        "dci": [-0.2, 0.5],
    }
    frame = pd.DataFrame({"config": ["a", "a"], "seed": [0, 1]} | columns)
    labels = directed({"mig": "MIG", "sap": "SAP", "mutual_info_score": "MI", "dci": "DCI"})
    figures.study.score_dots(frame, labels, tmp_path / "scores.png", title="t")
    panels = {ax.get_title(loc="left"): ax.get_xlim() for ax in drawn[0].axes}
    assert list(panels) == ["MIG", "SAP", "MI (lower is better)", "DCI"]
    assert panels["MIG"] == (-0.03, 1.03)  # rounding apart in 0 ... 1
    assert panels["SAP"] == pytest.approx((-0.0075, 0.2575))  # a quarter of it: to tell seeds apart
    assert (-0.03, 1.03) not in (panels["MI (lower is better)"], panels["DCI"])


def test_a_row_a_run(written):
    frame = pd.read_csv(written[0] / "results.csv")
    names = ["config", "seed", "beta_vae_paper", "mig", "udr"]
    assert list(frame) == [*names, "recon", "kl", "images_seen", "minutes", "commit"]
    assert list(zip(frame["config"], frame["seed"], strict=True)) == [
        (name, seed) for name in SCORES for seed in range(3)
    ]
    assert list(frame["beta_vae_paper"]) == [0.5, 0.6, 0.7, 0.9, 0.9, 0.9]
    assert list(frame["udr"]) == UDR["beta2"] + UDR["beta8"]
    assert np.isnan(frame["mig"][4])
    assert list(frame["recon"]) == [80, 81, 82] * 2
    row = frame.iloc[0]
    facts = (row["kl"], row["images_seen"], row["minutes"], row["commit"])
    assert facts == (2.5, 32, 2.0, "0123456789abcdef")


def test_tables_hold_mean_spread_median_and_n(written):
    lines = (written[0] / "results.md").read_text().splitlines()
    assert "| configuration | n | Paper's metric | MIG |" in lines
    assert "| beta2 | 3 | 0.600 ± 0.100 (0.600) | 0.300 ± 0.265 (0.200) |" in lines
    assert "| beta8 | 3 | 0.900 ± 0.000 (0.900) | 0.400 ± 0.141 (0.400), n = 2 |" in lines
    assert "| UDR | 0.500 ± 0.361 (0.400) | 0.333 ± 0.404 (0.100) |" in lines
    assert "| recon, nats | 81.0 ± 1.0 (81.0) | 81.0 ± 1.0 (81.0) |" in lines


def test_what_udr_chooses_stands_beside_the_best(written):
    lines = (written[0] / "results.md").read_text().splitlines()
    assert "| metric | beta2: UDR chooses seed 1 | beta8: UDR chooses seed 0 |" in lines
    row = "| MIG | 0.200; best 0.600 (seed 2) | 0.300; best 0.500 (seed 2) |"
    assert row in lines


def test_lower_is_better_for_the_metrics_that_say_so():
    frame = pd.DataFrame({"config": "a", "seed": [0, 1, 2], "udr": [0.1, 0.2, 0.1]})
    frame["mutual_info_score"], frame["mig"] = [0.3, 0.4, 0.35], [0.3, 0.5, 0.4]
    found = choices(frame, ["mutual_info_score", "mig"])
    assert list(found["seed"]) == [1, 1]
    assert list(found["best_seed"]) == [0, 1]
    assert choices(frame[:2], ["mig"]).empty  # two runs are each other's only judge
    assert choices(frame.drop(columns="udr"), ["mig"]).empty


def test_differences_are_tested_where_there_are_three_runs_a_side(written):
    lines = (written[0] / "results.md").read_text().splitlines()
    assert "| configurations | n | Paper's metric | MIG |" in lines
    assert "| beta2, beta8 | 3, 3 | 0.100; Dunn 0.037 | - |" in lines  # beta8 has two MIGs


def test_significance_by_hand():
    """2 of the 20 splits of three and three are as extreme, ties or not.

    Mean ranks 2, 5 and 8 of nine runs, three of them tied: z = -3 / 2.215 and -6 / 2.215 with
    2.215^2 = (9 * 10 - (27 - 3) / 8) / 12 * (1 / 3 + 1 / 3), two-sided p .1757 and .0068; Holm's
    factors are 2, 3 and 2.
    """
    scores = [1, 1, 1, 4, 5, 6, 7, 8, 9]
    frame = pd.DataFrame({"config": list("aaabbbccc"), "mig": scores, "sap": scores[::-1]})
    frame["irs"] = 0.5
    frame = pd.concat([frame, pd.DataFrame({"config": ["d", "d"], "mig": 5.0})])  # too few runs
    found = significance(frame, ["mig", "sap", "irs"])
    assert list(found["metric"]) == ["mig"] * 3 + ["sap"] * 3 + ["irs"] * 3
    assert list(found["u"]) == [0, 0, 0, 9, 9, 9, 4.5, 4.5, 4.5]
    assert list(found["p"]) == pytest.approx([0.1] * 6 + [1] * 3)
    z = np.array([3, 6, 3]) / np.sqrt((90 - 24 / 8) / 12 * 2 / 3)
    by_hand = 2 * norm.sf(z) * [2, 3, 2]
    assert list(found["p_dunn"]) == pytest.approx([*by_hand, *by_hand, 1, 1, 1])


def test_a_family_differs_in_one_number():
    base = {"name": "a", "seed": 0, "model": {"lr": 0.1, "ema": True}, "objective": {"beta": 1}}
    other = base | {"name": "b", "objective": {"beta": 4}}
    far = base | {"name": "c", "objective": {"beta": 4}, "model": {"lr": 0.2, "ema": True}}
    assert families({"a": base, "b": other, "c": far}) == {
        "model.lr": [{"b": 0.1, "c": 0.2}],
        "objective.beta": [{"a": 1, "b": 4}],
    }
    assert families({"a": base}) == {}
    twice = families({"a": base, "b": other, "again": other | {"name": "again"}})
    assert twice == {"objective.beta": [{"a": 1, "b": 4, "again": 4}]}  # and none of one value
    assert families({"a": base, "b": base | {"model": {"lr": 0.1, "ema": False}}}) == {}


def test_charts_are_there_and_not_blank(written):
    for name in ("scores", "correlation", "hyperparameter", "curves"):
        pixels = np.asarray(Image.open(written[0] / f"{name}.png").convert("L"))
        assert pixels.std() > 5, name


def test_an_unfinished_run_is_left_out_with_a_line(written):
    line = next(line for line in written[1].splitlines() if "seed3" in line)
    assert line.endswith("not finished (step 2 of 4), left out")
    assert "seed3" not in (written[0] / "report.html").read_text()


def test_a_run_that_has_begun_to_train_on_is_left_out(squares, tmp_path, capsys):
    """Its config.yaml asks for more steps than the checkpoint of the shorter run knows of."""
    runs = [make_run(tmp_path / "runs", squares, "beta4", seed) for seed in range(2)]
    values = load_checkpoint(runs[0])["config"]
    (runs[0] / "config.yaml").write_text(config.to_yaml(values))
    assert not train.is_extended(load_checkpoint(runs[0]), runs[0])
    longer = values | {"train": values["train"] | {"steps": 9}}
    (runs[0] / "config.yaml").write_text(config.to_yaml(longer))
    assert report.main(["--checkpoint", str(runs[0]), "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert f"{runs[0]}: trains on for more steps, left out" in printed.out
    assert "there is no finished run" in printed.err
    state = load_checkpoint(runs[0])
    assert publish.lacking(state, runs[0], []) == "it trains on for more steps"
    assert publish.lacking(state, runs[1], []) == ""


class Page(HTMLParser):
    """What a page loads, its sliders and its text."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.sliders, self.tags, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.loads += [attributes[key] for key in ("src", "data", "srcset") if key in attributes]
        if tag == "link":
            self.loads.append(attributes["href"])
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "input" and attributes["type"] == "range":
            self.sliders.append(attributes)


@pytest.mark.parametrize("which", ["study", "run"])
def test_a_page_is_one_small_file_that_needs_nothing_else(written, runs, which):
    folder = written[0] if which == "study" else runs / "beta2/seed0"
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert len(text.encode()) < LIMIT <= 5e6
    assert "img" in page.tags
    assert all(address.startswith("data:") for address in page.loads)
    assert all(a.startswith("data:image/png;base64,") for a in re.findall(r"url\((.*?)\)", text))
    assert "://" not in text
    assert "@import" not in text
    assert "python train.py seed=0" in text
    assert "01234567" in text
    assert "abacus, 2 cores" in text


def test_the_study_leads_to_the_pages_of_its_runs(written):
    links = Page((written[0] / "report.html").read_text()).links
    assert len(links) == 6
    assert all((written[0] / link).resolve().is_file() for link in links)


def sprites(text):
    found = re.findall(r"\.sprite\d \{ background-image: url\(data:image/png;base64,(.*?)\)", text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_a_slider_a_latent_over_frames_that_the_model_decodes(runs):
    folder = runs / "beta8/seed1"
    text = (folder / "report.html").read_text()
    run = next(evaluate.load_runs([folder], "cpu"))
    sliders, pictures = Page(text).sliders, sprites(text)
    order = [int(slider["aria-label"].removeprefix("z")) for slider in sliders]
    assert sorted(order) == [0, 1, 2]
    assert {slider["max"] for slider in sliders} == {str(VALUES - 1)}
    assert len(pictures) == report.REFERENCES
    reference = next(iter(run.data.reference_images().values()))
    with torch.inference_mode():
        code = run.model.encode(reference[None])[0]
        for row, d in enumerate(order):
            assert (
                int(sliders[row]["value"])
                == np.abs(np.linspace(-3, 3, VALUES) - code[d].item()).argmin()
            )
            for column, value in enumerate(np.linspace(-3, 3, VALUES)):
                z = code.clone()
                z[d] = value
                image = 255 * run.model.decode(z[None])[0, 0].numpy()
                frame = pictures[0][64 * row :, 64 * column :][:64, :64]
                assert np.abs(frame - image).max() < 1


def test_names_are_text_and_pictures_that_do_not_fit_are_named(runs, tmp_path):
    run = next(evaluate.load_runs([runs / "beta2/seed0"], "cpu"))
    large, small = tmp_path / "large.gif", tmp_path / "small.png"
    large.write_bytes(bytes(4_500_000))
    small.write_bytes(bytes(100))
    empty = Table("", "", [], [])
    references = run.data.reference_images()
    content = dict.fromkeys(("title", "note", "how", "configuration"), "") | {"commands": []}
    path = run_page(
        tmp_path / "report.html",
        run.model,
        references,
        [1.0, 0.0, 2.0],
        factor_names=["<b>size</b> 90%", "posX 50%", "posY 80%"],
        pictures={"large": large, "small": small},
        scores=empty,
        facts=empty,
        **content,
    )
    text = path.read_text()
    assert len(text) < LIMIT
    assert "large.gif is too large for this page" in text
    assert [slider["aria-label"] for slider in Page(text).sliders] == ["z2", "z0", "z1"]
    assert text.count('class="latent dead"') == 1
    assert "posY 80%" in text
    assert "posX 50%" not in text  # of a latent that carries nothing
    assert "&lt;b&gt;size&lt;/b&gt; 90%" in text
    assert "<b>size" not in text


def test_latents_that_do_not_fit_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr("figures.html.LIMIT", 450_000)
    model = build_model((1, 64, 64), {"name": "vae", "latent_dim": 40}, {"name": "vae"}).eval()
    information = torch.arange(40.0)
    references = {"noise": torch.rand(1, 64, 64)}
    empty = Table("", "", ["a"], [])
    content = dict.fromkeys(("title", "note", "how", "configuration"), "text") | {"commands": []}
    path = run_page(
        tmp_path / "report.html",
        model,
        references,
        information,
        factor_names=None,
        pictures={},
        scores=empty,
        facts=empty,
        **content,
    )
    text = path.read_text()
    shown = [slider["aria-label"] for slider in Page(text).sliders]
    assert 0 < len(shown) < 40
    assert shown == [f"z{39 - i}" for i in range(len(shown))]
    assert f"{40 - len(shown)} more, of the least, do not fit into this page." in text


def test_a_run_counts_once_and_a_name_is_of_one_configuration(squares, tmp_path):
    runs = [make_run(tmp_path / part, squares, "beta2", 0) for part in ("a", "b")]
    with pytest.raises(ValueError, match=f"{runs[1]} is the same run as {runs[0]}"):
        list(evaluate.load_runs(runs, "cpu"))
    other = make_run(tmp_path / "c", squares, "beta2", 1)
    state = load_checkpoint(other)
    state["config"]["objective"]["beta"] = 3.0
    save_checkpoint(other / "checkpoint.pt", state)
    with pytest.raises(ValueError, match="'beta2' differ in more than the seed"):
        list(evaluate.load_runs([runs[0], other], "cpu"))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("log.csv", ""),
        ("log.csv", "step,images,recon,kl\n"),
        ("log.csv", "step,images,recon,kl\n2,16,90,1\n4,32,8"),
        ("log.csv", "step,images,recon,kl\n2,16,x,1\n"),
        ("log.csv", "step,images,recon,kl\n2,16,90,1\n2,16,80,1\n"),
        ("run.json", "{}"),
        ("run.json", '{"starts": {}}'),
        ("run.json", '{"starts": [5]}'),
        ("run.json", '{"starts": [{}]}'),
        ("run.json", '{"starts": [], "train_seconds": null}'),
    ],
)
def test_a_damaged_record_is_named(squares, tmp_path, capsys, file, text):
    folder = make_run(tmp_path, squares, "beta2", 0, scores={"beta_vae_paper": 0.5, "mig": 0.1})
    (folder / file).write_text(text)
    assert report.main(["--checkpoint", str(folder), *METRICS]) == 2
    assert f"report.py: {folder / file} is damaged" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named_before_the_work(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "gather", lambda *_: pytest.fail("it has begun"))
    (tmp_path / "file").touch()
    paths = [str(runs / name / "seed0") for name in ("beta2", "beta8")]
    assert report.main(["--checkpoint", *paths, "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_known_scores_are_those_of_the_same_question(runs, monkeypatch):
    run, score = next(evaluate.load_runs([runs / "beta2/seed0"], "cpu")), asked()
    monkeypatch.setattr(evaluate, "_score", never)
    assert evaluate.score_run(run, run.path, score)["mig"]["score"] == 0.1
    fewer = evaluate.score_run(run, run.path, score | {"metrics": ["mig"]})
    assert list(fewer) == ["mig"]
    for key, value in {"seed": 1, "repeats": 2, "settings": {}, "min_kl": 0.05}.items():
        with pytest.raises(ValueError, match=rf"metrics.json has scores with {key} .*--out"):
            evaluate.score_run(run, run.path, score | {key: value})  # they would be lost
    another = run._replace(sha256="0" * 64)  # other weights
    for unknown in (run, run.path, score | {"metrics": ["mig", "irs"]}), (another, run.path, score):
        with pytest.raises(AssertionError, match="scored again"):
            evaluate.score_run(*unknown)
    with pytest.raises(AssertionError, match="scored again"):
        evaluate.score_run(run, runs, score)


def test_scores_that_are_there_are_reported_on_without_the_others(squares, tmp_path, monkeypatch):
    folders = []
    for seed in range(4):
        scores = {"beta_vae_paper": 0.5, "mig": 0.1 * seed}
        scores |= {"irs": 0.3} if seed < 3 else {}
        folders.append(str(make_run(tmp_path / "runs", squares, "beta2", seed, scores=scores)))
    folders.append(str(make_run(tmp_path / "runs", squares, "beta4", 0)))  # never scored
    monkeypatch.setattr(evaluate, "_score", never)
    monkeypatch.setattr(report, "PICTURE_IMAGES", 64)
    arguments = ["--checkpoint", *folders, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert report.main([*arguments, "--metrics", "mig,irs,sap", "--scored"]) == 0
    frame = pd.read_csv(tmp_path / "out/results.csv")
    assert frame["mig"].tolist()[:4] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert frame["irs"].tolist()[:3] == [0.3] * 3
    assert frame[["mig", "irs"]].iloc[4].isna().all()
    assert frame["irs"].isna().tolist() == [False] * 3 + [True] * 2
    assert frame["sap"].isna().all()
    assert "| irs | 0.300 ± 0.000 (0.300), n = 3 | - |" in (tmp_path / "out/results.md").read_text()


def test_another_metric_is_scored_beside_those_that_are_known(squares, tmp_path, monkeypatch):
    scores = {"beta_vae_paper": 0.5, "mig": 0.1}
    folder = make_run(tmp_path / "runs", squares, "beta2", 0, scores=scores)
    settings = tmp_path / "few.yaml"
    settings.write_text("irs: {num_samples: 48}")
    facts = json.loads((folder / "evaluation.json").read_text())
    facts["settings"] = {"irs": {"num_samples": 48}}
    (folder / "evaluation.json").write_text(json.dumps(facts))
    arguments = ["--checkpoint", str(folder), "--config", str(settings), "--device", "cpu"]
    assert evaluate.main([*arguments, "--metrics", "mig,irs"]) == 0
    scored = json.loads((folder / "metrics.json").read_text())
    assert list(scored) == ["beta_vae_paper", "mig", "irs"]
    assert (scored["beta_vae_paper"]["score"], scored["mig"]["score"]) == (0.5, 0.1)
    monkeypatch.setattr(evaluate, "_score", never)
    assert evaluate.main([*arguments, "--metrics", "irs"]) == 0
    assert evaluate.main([*arguments, "--metrics", "beta_vae_paper,mig,irs"]) == 0


def test_a_study_leaves_out_a_run_that_has_another_configuration(squares, tmp_path, capsys):
    folder = make_run(tmp_path / "runs", squares, "beta4", 0)
    (folder / "config.yaml").write_text(config.to_yaml(load_checkpoint(folder)["config"]))
    study = {"name": "tiny", "seeds": [0], "metrics": "mig", "runs": [beta4(squares)]}
    study["runs"][0]["overrides"]["train.steps"] = 5
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    arguments = ["--study", str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs")]
    assert report.main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert f"{folder}: has not the configuration of the study, left out" in printed.out
    assert "there is no finished run" in printed.err


def beta4(squares):
    """The entry of a study that describes make_run(..., "beta4", ...)."""
    overrides = {"dataset": {"name": "npz", "path": str(squares)}}
    overrides |= {"objective": {"name": "beta_vae", "beta": 4}, "model.latent_dim": 3}
    overrides |= {"train.batch_size": 8, "train.device": "cpu", "train.steps": 4}
    return {"config": "config/twoD_vae.yaml", "name": "beta4", "overrides": overrides}


def test_a_study_is_scored_once(squares, tmp_path, monkeypatch, capsys):
    settings = tmp_path / "few.yaml"
    settings.write_text("mig: {num_samples: 48}")
    folder = make_run(tmp_path / "runs", squares, "beta4", 0)
    (folder / "config.yaml").write_text(config.to_yaml(load_checkpoint(folder)["config"]))
    study = {"name": "tiny", "seeds": "0-1", "metrics": "mig", "runs": [beta4(squares)]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    arguments = ["--study", str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs")]
    arguments += ["--out", str(tmp_path / "out"), "--config", str(settings), "--device", "cpu"]
    assert report.main(arguments) == 0
    assert "beta4: not started, left out: seed 1\n" in capsys.readouterr().out
    score = json.loads((folder / "metrics.json").read_text())["mig"]["score"]
    assert pd.read_csv(tmp_path / "out/results.csv")["mig"].tolist() == pytest.approx([score])
    first = (tmp_path / "out/results.md").read_text()
    assert first.startswith("# tiny\n")
    monkeypatch.setattr(evaluate, "_score", never)
    assert report.main(arguments) == 0
    assert (tmp_path / "out/results.md").read_text() == first
    (folder / "report.html").unlink()
    few = [*arguments[-4:], "--metrics", "mig"]
    assert report.main(["--checkpoint", str(folder), *few]) == 0
    assert len(Page((folder / "report.html").read_text()).sliders) == 3


def test_a_published_checkpoint_is_reported_on_beside_its_study(runs, tmp_path, monkeypatch):
    file = tmp_path / "vae.pt"
    file.write_bytes((runs / "beta2/seed0/checkpoint.pt").read_bytes())
    scores = {"mig": {"score": 0.25}}
    monkeypatch.setattr(report, "score_run", lambda *_: scores)
    out = tmp_path / "out"
    arguments = ["--checkpoint", str(file), "--out", str(out), "--metrics", "mig"]
    assert report.main([*arguments, "--device", "cpu"]) == 0
    page = Page((out / "beta2_seed0/report.html").read_text())
    assert len(page.sliders) == 3
    frame = pd.read_csv(out / "results.csv")
    assert frame["mig"].tolist() == [0.25]
    assert frame[["udr", "recon", "minutes", "commit"]].isna().all(axis=None)
    assert "| beta2 | 1 | 0.250 (0.250) |" in (out / "results.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--study", "none.yaml"], "none.yaml"),
        (["--checkpoint", "none"], "there is no checkpoint none"),
        (["--checkpoint", "none", "none"], "--out: a folder is needed"),
        (["--checkpoint", SOME, f"./{SOME}", "--out", "out"], f"{SOME} is given twice"),
        (["--checkpoint", SOME, "none", "--out", "out"], "there is no checkpoint none"),
        (["--checkpoint", "none", "--metrics", "migg"], "did you mean 'mig'?"),
        (["--checkpoint", "none", "--seed", "-1"], "--seed: -1"),
        (["--checkpoint", "tests"], "there is no finished run"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, arguments, part):
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("report.py: ")
    assert part in error
    assert error.count("\n") == 1
