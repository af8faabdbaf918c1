"""Tables, charts and pages of many runs, from the rows of results.csv."""

import glob
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import files
import results
from comparison import COMPARED, plain
from figures.charts import bars, rank_correlation, score_dots, training_curves
from figures.page import Table, render
from metrics import SCORES
from results import text
from training.folder import provenance

BASELINES = Path("runs/baselines")  # what evaluate.py --baseline writes
PUBLISHED = Path(__file__).resolve().parent / "res" / "2dshapes" / "figure6_untrained.json"
MAIN = {  # columns of the table "all" -> heading
    "factor_vae": "FactorVAE score",
    "mig": "MIG",
    "dci_disentanglement": "DCI",
    "beta_vae_paper": "β-VAE metric",
    "dci_fast_disentanglement": "DCI, fast",
    "sap": "SAP",
    "udr": "UDR",
    "model_centrality": "ModelCentrality",
    "recon": "recon, nats",
    "kl": "KL, nats",
}
SHORT = ("factor_vae", "mig", "dci_disentanglement", "beta_vae_paper")  # of the table "scores"
GEOMETRY = "twoD_affine"  # its decoder is given position, size and angle
ONE_DIGIT = ("recon", "kl", "minutes")  # other numbers have three behind the point
FIGURE6_UNIT = "accuracy on held-out points, % (4 factors: chance is 25 %)"
FIGURE6 = {  # baseline or configuration -> row; accuracy and its spread in % in the paper
    "true_factors": ("ground truth", 100.0, math.nan),
    "raw_pixels": ("raw pixels", 45.75, 0.8),
    "pca": ("PCA", 84.9, 0.4),
    "ica": ("ICA", 42.03, 10.6),
    "untrained_vae": ("untrained VAE", 44.14, 2.5),
    "twoD_infogan": ("InfoGAN", 73.5, 0.9),
    "twoD_infogan_sn": ("InfoGAN, spectral norm", math.nan, math.nan),
    "twoD_infogan_broadcast": ("InfoGAN, broadcast", math.nan, math.nan),
    "twoD_infogan_cr": ("InfoGAN-CR", math.nan, math.nan),
    "twoD_vae": ("VAE", 61.58, 0.5),
    "twoD": ("β-VAE, main model", 99.23, 0.1),
}
Logs = dict[str, list[pd.DataFrame]]  # configuration -> the log of each of its runs
Papers = dict[str, dict[str, float]]  # name -> scores in a paper


def write(
    out: Path, frame: pd.DataFrame, logs: Logs, folders: list[Path], study: dict[str, Any]
) -> None:
    """Write results.csv, results.md, charts and report.html, and the tables in documents.

    Args:
        frame: the rows of results.csv, from the runs in `folders`.
        study: with its `name`, `baseline`, `documents`, `shown` and `papers`.
    """
    title = study["name"]
    files.write(out / "results.csv", frame.to_csv(index=False))
    tables, charts = study_tables(frame, study["baseline"]), {}
    if study["shown"]:
        charts = shown_charts(frame, logs, plain(study["shown"]), study["papers"])
    charts |= study_charts(frame, logs, title)
    if FIGURE6.keys() & set(frame["config"]):
        tables["figure6"], rows = figure6(pd.concat([read_baselines(), frame]))
        charts["figure6.png"] = bars(rows, title=tables["figure6"].title, unit=FIGURE6_UNIT)
    for name, picture in charts.items():
        files.write(out / name, picture)

    # Tables in Markdown: a file of their own, and between markers in documents.
    lines = [f"# {title}\n"]
    for table in tables.values():
        lines.append(f"## {table.title}\n\n{table.note}\n\n{results.markdown(table)}")
    files.write(out / "results.md", "\n".join(lines))
    named = tables | short_tables(frame, study["shown"], study["papers"])
    named[title] = named.pop("all")
    named = {name: results.markdown(table) for name, table in named.items()}
    for pattern in study["documents"]:
        for path in glob.glob(pattern):
            document = Path(path).read_text(encoding="utf-8")
            files.write(path, results.replace_tables(document, named))

    # The page: the same, and a row for each run.
    page = render(
        "study.html",
        title=title,
        note=f"{len(frame)} runs of {frame['config'].nunique()} configurations.",
        tables=list(tables.values()),
        pictures=charts,
        commands=[provenance()["command"]],
        provenance=every_run(frame, [os.path.relpath(f / "report.html", out) for f in folders]),
    )
    files.write(out / "report.html", page)


def shown_charts(
    frame: pd.DataFrame, logs: Logs, names: dict[str, str], papers: Papers
) -> dict[str, bytes]:
    """The table "scores" as dots, with papers, and the training of COMPARED: file name -> PNG."""
    rows = frame[frame["config"].isin(names)].replace({"config": names})
    published = pd.DataFrame([{"config": name} | papers[name] for name in papers])
    published["config"] = published["config"].map(lambda name: plain({"": name})[""])
    labels = {key: label(key) for key in SHORT if key in present(rows)}
    title = "Scores of every seed; higher is better"
    options = {"title": title, "published": list(published["config"])}
    curves = {names[name]: logs[name] for name in COMPARED if name in logs}
    return {
        "four_scores.png": score_dots(pd.concat([rows, published]), labels, **options),
        "two_curves.png": training_curves(curves, title="Training of the VAE and the β-VAE"),
    }


def study_charts(frame: pd.DataFrame, logs: Logs, title: str) -> dict[str, bytes]:
    """The charts of a study: file name -> PNG."""
    labels = {key: label(key) for key in present(frame) if key not in results.FACTS}
    charts = {}
    if labels:
        name = f"{title}: scores of every seed"
        charts["scores.png"] = score_dots(frame, labels, title=name)
    if len(labels) > 1 and len(frame) > 2:
        name = f"{title}: which metrics rank the runs alike"
        charts["correlation.png"] = rank_correlation(frame, labels, title=name)
    return charts | {"curves.png": training_curves(logs, title=f"{title}: training")}


def study_tables(frame: pd.DataFrame, baseline: str | None = None) -> dict[str, Table]:
    """The tables by name: all, metrics, and where they can be made medoids and significance."""
    keys, names = present(frame), list(frame["config"].unique())
    main = [key for key in keys if key in MAIN]
    others = [key for key in keys if key not in MAIN]
    cells = _cells(frame, keys)
    rows = [[label(key), *(cells[name, key] for name in names)] for key in others]
    note = "Mean ± standard deviation (ddof 1) over the seeds of each configuration."
    all_rows = results.with_parts(frame)
    tables = {"all": _by_configuration(all_rows, _cells(all_rows, main), main)}
    tables["metrics"] = Table("Other metrics", note, ["metric", *names], rows)
    if "model_centrality" in keys:
        tables["medoids"] = _medoids(frame, main)
    if baseline:
        scores = [key for key in main if key not in results.FACTS]
        tables["significance"] = _significance(frame, baseline, scores)
    return tables


def short_tables(
    frame: pd.DataFrame, names: dict[str, str] | None = None, papers: Papers | None = None
) -> dict[str, Table]:
    """Tables for documents: paper, and scores (of `names`, then of papers), the best in bold."""
    names = names or {name: name for name in frame["config"].unique()}
    rows = [frame[frame["config"] == name].assign(config=row) for name, row in names.items()]
    shown, given = pd.concat(rows), names.get(GEOMETRY)
    rivals = shown[shown["config"] != given]
    keys = [key for key in SHORT if key in present(rivals)]
    cells = _cells(shown, keys)
    for key in keys:
        best = rivals.groupby("config")[key].mean().idxmax()
        cells[best, key] = f"**{cells[best, key]}**"
    scores = _by_configuration(shown, cells, keys)
    for name, values in (papers or {}).items():
        numbers = [cell(key, values[key]) if key in values else "-" for key in keys]
        scores.rows.append([name, "-", "-", *numbers])
    in_paper = [name for name, (_, score, _) in FIGURE6.items() if score > 0]
    paper, _ = figure6(frame[frame["config"].isin(in_paper)])
    return {"scores": scores, "paper": paper}


def _by_configuration(frame: pd.DataFrame, cells: dict, keys: Sequence[str]) -> Table:
    """A row a configuration, a column a score."""
    rows = []
    for name, group in frame.groupby("config", sort=False):
        images = " / ".join(f"{n:,}" for n in group["images_seen"].unique())
        rows.append([name, str(len(group)), images, *(cells[name, key] for key in keys)])
    note = "Mean ± standard deviation (ddof 1) over n seeds. DCI is its disentanglement."
    return Table("Scores", note, ["configuration", "n", "images seen", *map(label, keys)], rows)


def present(frame: pd.DataFrame) -> list[str]:
    """The scores and facts that a run of the frame has; those of the main table are first."""
    keys = dict.fromkeys([*MAIN, *SCORES, "minutes"])
    return [key for key in keys if key in frame and frame[key].notna().any()]


def label(key: str) -> str:
    """The name of a score or fact; it says so if lower is better."""
    return results.heading(key, MAIN.get(key, key.replace("_", " ")))


def cell(key: str, mean: float, std: float = math.nan) -> str:
    """`text` of a column of results.csv."""
    return text(mean, std, digits=1 if key in ONE_DIGIT else 3)


def _cells(frame: pd.DataFrame, keys: Sequence[str]) -> dict[tuple[str, str], str]:
    """(config, column) -> mean ± standard deviation, with n where some runs lack the score."""
    cells, long = {}, frame.melt("config", keys, var_name="column")
    for (name, key), values in long.groupby(["config", "column"])["value"]:
        n = values.count()
        few = "" if n in (0, len(values)) else f" (n = {n})"
        cells[name, key] = cell(key, values.mean(), values.std()) + few
    return cells


def _medoids(frame: pd.DataFrame, keys: Sequence[str]) -> Table:
    """The run of each configuration that ModelCentrality chooses."""
    known = frame.dropna(subset="model_centrality")
    chosen = known.loc[known.groupby("config", sort=False)["model_centrality"].idxmax()]
    rows = []
    for _, run in chosen.iterrows():
        rows.append([run["config"], str(run["seed"]), *(cell(key, run[key]) for key in keys)])
    note = "The run that is most like the other seeds of its configuration, chosen without labels."
    header = ["configuration", "seed", *map(label, keys)]
    return Table("Seeds chosen by ModelCentrality", note, header, rows)


def _significance(frame: pd.DataFrame, baseline: str, keys: Sequence[str]) -> Table:
    """Which configurations differ from the baseline."""
    tests = results.against_baseline(frame, baseline, keys)
    cells = {(r.config, r.column): f"{text(r.p)}; {text(r.p_holm)}" for r in tests.itertuples()}
    names = [name for name in frame["config"].unique() if name in set(tests["config"])]
    rows = [[name, *(cells.get((name, key), "-") for key in keys)] for name in names]
    note = (
        f"Each configuration against {baseline}: p of a two-sided Mann-Whitney U test of the pair "
        "(with five runs a side not below 0.008); then the same after Holm's correction over the "
        "configurations. Configurations with fewer than three runs are left out."
    )
    header = ["configuration", *map(label, keys)]
    return Table(f"Differences from {baseline}", note, header, rows)


def every_run(frame: pd.DataFrame, links: list[str]) -> Table:
    """A row for each run that leads to its page."""
    keys = [key for key in present(frame) if key in MAIN or key == "minutes"]
    rows = []
    for _, row in frame.iterrows():
        cells = [cell(key, row[key]) for key in keys]
        rows.append([row["config"], str(row["seed"]), *cells, str(row["commit"])])
    note = "The first column leads to the page of a run. A commit with + had changed files."
    header = ["configuration", "seed", *map(label, keys), "commit"]
    return Table("Every run", note, header, rows, links)


def read_baselines() -> pd.DataFrame:
    """Rows (config, beta_vae_paper) of representations without training, new or else published."""
    rows, published = [], json.loads(PUBLISHED.read_text())["scores"]
    for name, (row, *_) in FIGURE6.items():
        folders = sorted(BASELINES.glob(f"{name}/seed*"))
        entries = [results.read_scores(folder)["scores"] for folder in folders]
        new = [entry["beta_vae_paper"]["score"] for entry in entries if "beta_vae_paper" in entry]
        scores = new or published.get(row, {}).get("beta_vae_paper", [])
        rows += [(name, score) for score in scores]
    return pd.DataFrame(rows, columns=["config", "beta_vae_paper"])


def figure6(frame: pd.DataFrame) -> tuple[Table, dict[str, tuple[float, ...]]]:
    """The beta-VAE paper's metric beside its Figure 6: a table, and rows of `bars`."""
    scores = frame.reindex(columns=["config", "beta_vae_paper"]).dropna()
    rows, chart = [], {}
    for name, (row, paper, spread) in FIGURE6.items():
        ours = 100 * scores.loc[scores["config"] == name, "beta_vae_paper"]
        if len(ours):
            chart[row] = ours.mean(), ours.std(), paper, spread
            published = f"{paper:g} ± {spread:g}".replace(" ± nan", "").replace("nan", "-")
            rows.append([row, text(ours.mean(), ours.std(), 1), published, str(len(ours))])
    title = "Disentanglement metric of the beta-VAE paper, Figure 6"
    note = "Accuracy, mean ± standard deviation (ddof 1) over n seeds, beside the paper's numbers."
    return Table(title, note, ["representation", "ours, %", "paper, %", "n"], rows), chart
