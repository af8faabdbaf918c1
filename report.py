"""Tables, charts and pages of many runs: python report.py --study config/studies/twoD.yaml

Or of any runs: python report.py --checkpoint runs/twoD/seed0 runs/twoD/seed1 --out report; of a
single one without --out: its page, runs/twoD/seed0/report.html. Runs without scores are scored
first, as evaluate.py does it; runs that are not finished are left out.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

import config
import train
from config.study import Study, load_study, members
from evaluate import (
    DEFAULT_CONFIG,
    DEFAULT_METRICS,
    PICTURE_IMAGES,
    Codes,
    Run,
    agreement,
    agreement_codes,
    factor_names,
    folder_of,
    load_runs,
    metric_settings,
    score_run,
)
from figures.html import Table, run_page, study_page
from figures.latents import measure
from figures.study import hyperparameters, rank_correlation, score_dots, training_curves
from metrics import LOWER_IS_BETTER, METRICS, select
from metrics.study import choices, directed, families, significance, summarise
from sweep import locate
from training import load_checkpoint, provenance, read_record
from training.checkpoint import write_atomically

MAIN = {  # the metrics of the first table
    "beta_vae_paper": "Paper's metric",
    "factor_vae": "FactorVAE score",
    "mig": "MIG",
    "sap": "SAP",
    "dci_disentanglement": "DCI",
    "dci_fast_disentanglement": "DCI, fast",
}
FACTS = {"recon": "recon, nats", "kl": "KL, nats", "images_seen": "images seen"}
FACTS |= {"minutes": "minutes", "commit": "commit"}
REFERENCES = 2  # of the sliders
PICTURES = {  # of a run, the first to be kept where a page becomes too large
    "curves.png": "Training",
    "recon.png": "Reconstructions",
    "fixed.png": "Traversals from fixed references",
    "codes.png": "Fixed noise, and what each latent does to it",
    "random.png": "Samples, and traversals from random images",
    "matrix_mig.png": "Mutual information of codes and factors",
    "matrix_dci_disentanglement.png": "Importance of codes for factors (DCI)",
    "traversal.gif": "Each latent moves alone",
    "training.gif": "Fixed noise as training proceeds",
}


class Scored(NamedTuple):
    """What remains of a run once its model is dropped."""

    folder: Path
    values: dict[str, Any]  # the configuration
    row: dict[str, Any]  # of results.csv
    log: pd.DataFrame | None
    record: dict[str, Any]  # run.json; {} where there is none
    sample: Codes | None  # evaluate.agreement_codes, for a report of several runs


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--study", type=Path, help="a YAML file such as config/studies/twoD.yaml")
    what.add_argument(
        "--checkpoint", nargs="+", type=Path, metavar="PATH", help="checkpoints or run folders"
    )
    parser.add_argument(
        "--runs", type=Path, help="of --study; default: runs/studies/<name of the study>"
    )
    parser.add_argument("--out", type=Path, help="default: res/<name of the study>")
    parser.add_argument("--metrics", help=f"default: the study's; else {DEFAULT_METRICS}")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="metrics' settings")
    parser.add_argument("--seed", type=int, default=0, help="of the metrics' sampling")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--scored", action="store_true", help="take the scores that are there, compute no others"
    )
    options = parser.parse_args(arguments)
    try:
        if options.seed < 0:
            raise ValueError(f"--seed: {options.seed} is not allowed; allowed: 0 or more")
        paths, title, metrics, out = options.checkpoint, "", DEFAULT_METRICS, options.out
        if options.runs and not options.study:
            raise ValueError("--runs is not allowed with --checkpoint")
        if options.study:
            study = load_study(options.study)
            title, metrics, out = study.name, study.metrics, out or Path("res") / study.name
            paths = started(options.runs or study.home, study)
        elif len(paths) > 1 and not out:
            raise ValueError("--out: a folder is needed for the report of several runs")
        score = {"metrics": select((options.metrics or metrics).split(",")), "seed": options.seed}
        score |= {"repeats": 1, "settings": metric_settings(options.config, [])}
        if out:
            out.mkdir(parents=True, exist_ok=True)  # a bad one fails now, not after the work
        runs = gather(paths, out, options.device, score, options.scored)
        if out:
            report(runs, out, title or out.name, score)
    except (ValueError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("report.py: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def started(runs: Path, study: Study) -> list[Path]:
    """Folders of the members of a study that have begun or are published; a line for each other."""
    folders, waiting = [], {}
    for member in members(study):
        values = train.resolve(member.config, list(member.overrides))
        folder = locate(member, values, runs, study.published)
        if not folder.exists():
            waiting.setdefault(member.name, []).append(str(member.seed))
        elif (folder / "checkpoint.pt").exists() and not train.holds(folder, values):
            print(f"{folder}: has not the configuration of the study, left out")
        else:
            folders.append(folder)
    for name, seeds in waiting.items():
        print(f"{name}: not started, left out: seed {', '.join(seeds)}")
    return folders


def gather(
    paths: list[Path], out: Path | None, device: str, score: dict[str, Any], scored: bool
) -> list[Scored]:
    """Score each finished run (unless that is done) and write its page; a line for each other one.

    scored: take the scores that are there. Raises ValueError where no run is finished.
    """
    there = []
    for path in paths:
        if path.is_dir() and not (path / "checkpoint.pt").exists():
            print(f"{path}: no checkpoint yet, left out")
        elif path.is_dir() and train.is_extended(load_checkpoint(path), path):
            print(f"{path}: trains on for more steps, left out")
        else:
            there.append(path)
    found = []
    for run in load_runs(there, device):
        if run.step < run.values["train"]["steps"]:
            steps = run.values["train"]["steps"]
            print(f"{run.path}: not finished (step {run.step:,} of {steps:,}), left out")
            continue
        found.append(look_at(run, out, score, scored))
    if not found:
        raise ValueError("there is no finished run to report on")
    return found


def look_at(run: Run, out: Path | None, score: dict[str, Any], scored: bool) -> Scored:
    """The scores of a run, old or new, and its page."""
    at_home = run.path.is_dir() or run.path.name == "checkpoint.pt"
    folder = folder_of(run, None if at_home else out, several=True)
    scores = score_run(run, folder, score, scored)
    sample = agreement_codes(run, score["seed"]) if scores and out else None
    file, log = folder / "run.json", folder / "log.csv"
    record = read_record(file) if file.exists() else {}
    log = read_log(log) if log.exists() else None
    row = {"config": run.values["name"], "seed": run.values["seed"]}
    row |= {key: scores.get(key, {}).get("score") for key in score["metrics"]}
    for term in ("recon", "kl"):
        row[term] = log[term].iloc[-1] if log is not None and term in log else None
    row |= {"images_seen": run.images_seen, "minutes": record.get("train_seconds", np.nan) / 60}
    row["commit"] = (starts(record) or [{}])[-1].get("commit")
    page(run, folder, scores, record, row)
    return Scored(folder, run.values, row, log, record, sample)


def read_log(path: Path) -> pd.DataFrame:
    """The rows of a log.csv. Raises ValueError where it is none, or torn."""
    try:
        log = pd.read_csv(path)
        whole = path.read_bytes().endswith(b"\n") and not log.empty
        whole = whole and "step" in log and log["step"].is_unique
        if not whole or set(log.select_dtypes("number")) < set(log):
            raise ValueError
    except ValueError as error:  # pandas' own, too
        raise ValueError(f"{path} is damaged: remove it, the report goes on without") from error
    return log


def starts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The times that a run was started, from its run.json."""
    return record.get("starts", [])


def page(
    run: Run, folder: Path, scores: dict[str, Any], record: dict[str, Any], row: dict[str, Any]
) -> None:
    """Write report.html of a run."""
    data = run.data
    information = measure(run.model, data.batch(data.random_index(PICTURE_IMAGES, seed=0)))
    references = dict(list(data.reference_images().items())[:REFERENCES])
    lines = [
        [key, f"{entry['score']:.4f}" if entry["score"] is not None else "-", _detail(entry)]
        for key, entry in scores.items()
    ]
    facts = [[name, str(_cell(row[key], key))] for key, name in FACTS.items()]
    facts += [["hardware", _hardware(start)] for start in starts(record)[-1:]]
    commands = [start["command"] for start in starts(record)[:1]]
    commands = commands or ["python train.py --config run.yaml"]
    commands.append(f"python report.py --checkpoint {shlex.quote(str(run.path))}")
    run_page(
        folder / "report.html",
        run.model,
        references,
        information,
        factor_names=factor_names(scores),
        pictures={v: folder / k for k, v in PICTURES.items() if (folder / k).exists()},
        title=f"{run.values['name']}, seed {run.values['seed']}",
        note=f"{run.images_seen:,} images of {data.name} seen in {run.step:,} steps.",
        scores=Table("Scores", "", ["metric", "score", "by factor"], lines),
        facts=Table("Facts", "", ["what", "this run"], facts),
        how="What trained this run (or, from the configuration below as run.yaml, trains it "
        "again); then what made this page.",
        commands=commands,
        configuration=config.to_yaml(run.values),
    )
    print(f"{run.label}: the page is {folder / 'report.html'}")


def report(runs: list[Scored], out: Path, title: str, score: dict[str, Any]) -> None:
    """Write all files of a study into a folder, which is there."""
    frame = results(runs, score)
    labels = {key: MAIN.get(key, key.replace("_", " ")) for key in METRICS}
    labels = {k: v for k, v in (labels | {"udr": "UDR"}).items() if k in frame}
    labels = {k: v for k, v in labels.items() if frame[k].notna().any()}
    main_labels = {key: label for key, label in MAIN.items() if key in labels}
    labels = main_labels | labels
    tables = study_tables(frame, main_labels, labels)
    write_atomically(out / "results.csv", lambda file: frame.to_csv(file, index=False))
    text = markdown(title, tables)
    write_atomically(out / "results.md", lambda file: file.write_text(text, encoding="utf-8"))
    pictures = draw(runs, frame, main_labels, labels, out, title)
    order = ["config", "seed", *main_labels, *FACTS]
    every = Table(
        "Every run",
        "The first column leads to a run's own page, with a slider a latent, where report.py has "
        "run: it is in the folder of the run and not kept by git. All metrics are in results.csv. "
        "A commit with + had uncommitted changes.",
        ["configuration", "seed", *main_labels.values(), *FACTS.values()],
        [[_cell(row[key], key) for key in order] for _, row in frame.iterrows()],
        [quote(Path(os.path.relpath(run.folder / "report.html", out)).as_posix()) for run in runs],
    )
    commands = [start["command"] for run in runs for start in starts(run.record)[:1]]
    facts = [
        [_name(run), start.get("commit") or "-", _hardware(start)]
        for run in runs
        for start in starts(run.record)[-1:]
    ]
    now = provenance()
    facts.append(["this page", now["commit"] or "-", "-"])
    study_page(
        out / "report.html",
        pictures=pictures,
        title=title,
        note=f"{len(runs)} runs of {frame['config'].nunique()} configurations.",
        tables=[*tables, every],
        commands=[*dict.fromkeys(commands), now["command"]],
        provenance=Table("", "", ["run", "commit", "hardware"], facts),
    )
    print(f"results.csv, results.md, report.html and the charts are in {out}")


def results(runs: list[Scored], score: dict[str, Any]) -> pd.DataFrame:
    """The rows of results.csv, with the UDR of each run beside its metrics."""
    frame = pd.DataFrame([run.row for run in runs])
    udr = pd.Series(np.nan, index=frame.index)
    for name, index in frame.groupby("config", sort=False).groups.items():
        samples = [runs[i].sample for i in index if runs[i].sample is not None]
        if len(samples) == len(index) > 1:
            found = agreement(samples, score["seed"])
            if found["mean"] is None:
                print(f"{name}: no UDR: {found['reason']}")
            else:
                udr[index] = found["scores"]
    frame.insert(2 + len(score["metrics"]), "udr", udr)
    numbers = [*score["metrics"], "udr", "recon", "kl", "minutes"]
    return frame.astype(dict.fromkeys(numbers, float))


def study_tables(
    frame: pd.DataFrame, main_labels: dict[str, str], labels: dict[str, str]
) -> list[Table]:
    """The tables of results.md: scores, the other metrics, UDR's choice, significance."""
    names = list(dict.fromkeys(frame["config"]))
    terms = {key: FACTS[key] for key in ("recon", "kl", "minutes") if frame[key].notna().any()}
    others = {k: v for k, v in labels.items() if k not in main_labels} | terms
    summary = summarise(frame, [*labels, *terms])
    runs = frame.groupby("config").size()
    note = "Mean ± standard deviation (ddof 1) over n seeds, in brackets the median."
    main_note = f"{note} The paper's metric is beta_vae_paper; DCI is its disentanglement."
    rows = [
        [name, str(runs[name]), *(_mean(summary, name, key, runs[name]) for key in main_labels)]
        for name in names
    ]
    tables = [Table("Scores", main_note, ["configuration", "n", *main_labels.values()], rows)]
    rows = [
        [label, *(_mean(summary, name, key, runs[name]) for name in names)]
        for key, label in others.items()
    ]
    note += f" Lower is better for {' and '.join(LOWER_IS_BETTER)}.".replace("_", " ")
    tables.append(Table("Other metrics", note, ["metric", *names], rows))
    return tables + _choice_tables(frame, names, labels) + _test_tables(frame, main_labels)


def _choice_tables(frame: pd.DataFrame, names: list[str], labels: dict[str, str]) -> list[Table]:
    """Which run UDR chooses, and what it scores beside the best run by each metric."""
    found = choices(frame, [key for key in labels if key != "udr"])
    chosen = found.drop_duplicates("config").set_index("config")["seed"]
    if found.empty:
        return []
    cells = {
        (r.config, r.metric): f"{_cell(r.score, '')}; best {r.best:.3f} (seed {r.best_seed})"
        for r in found.itertuples()
    }
    names = [name for name in names if name in chosen]
    rows = [
        [label, *(cells.get((name, key), "-") for name in names)]
        for key, label in directed(labels).items()
        if key != "udr"
    ]
    note = "What the run scores that UDR chooses without labels; then the best run by the metric."
    header = ["metric", *(f"{name}: UDR chooses seed {chosen[name]}" for name in names)]
    return [Table("Choice without labels", note, header, rows)]


def _test_tables(frame: pd.DataFrame, labels: dict[str, str]) -> list[Table]:
    """Which configurations differ."""
    found = significance(frame, list(labels))
    if found.empty:
        return []
    pairs = found.groupby("metric").size()
    note = (
        "p of a two-sided Mann-Whitney U test of every two configurations with 3 runs or more, of "
        "the pair by itself (not below 0.1 with 3 runs a side, 0.03 with 4 and 0.008 with 5); "
        "then of Dunn's test, which ranks the runs of all configurations together, after Holm's "
        f"correction over all pairs on that metric (up to {pairs.max()} here; by the normal "
        "approximation, so roughly with few runs)."
    )
    runs = frame.groupby("config").size()
    cells = {(r.a, r.b, r.metric): f"{r.p:.3f}; Dunn {r.p_dunn:.3f}" for r in found.itertuples()}
    fewer = [r for r in found.itertuples() if (r.n_a, r.n_b) != (runs[r.a], runs[r.b])]
    cells |= {
        (r.a, r.b, r.metric): f"{cells[r.a, r.b, r.metric]} (n {r.n_a}, {r.n_b})" for r in fewer
    }
    rows = [
        [f"{a}, {b}", f"{runs[a]}, {runs[b]}", *(cells.get((a, b, key), "-") for key in labels)]
        for a, b in dict.fromkeys((r.a, r.b) for r in found.itertuples())
    ]
    return [Table("Significance", note, ["configurations", "n", *labels.values()], rows)]


def draw(
    runs: list[Scored],
    frame: pd.DataFrame,
    main_labels: dict[str, str],
    labels: dict[str, str],
    out: Path,
    title: str,
) -> dict[str, Path]:
    """Draw the charts that there are numbers for: what is said below each -> its file."""
    pictures = {}
    if labels:
        text = "Scores of every seed"
        file, name = out / "scores.png", f"{title}: scores"
        pictures[text] = score_dots(frame, directed(labels), file, title=name)
    if len(labels) > 1 and len(frame) > 2:
        file = out / "correlation.png"
        text = "Which metrics rank the runs alike"
        lower = [key for key in LOWER_IS_BETTER if key in labels]
        better = frame.assign(**{key: -frame[key] for key in lower})
        names = labels | {key: f"{labels[key]}, negated" for key in lower}
        pictures[text] = rank_correlation(better, names, file, title=f"{title}: metrics")
    alike = families({run.values["name"]: run.values for run in runs})
    if alike and labels:
        shown = main_labels or dict(list(labels.items())[:4])
        file, name = out / "hyperparameter.png", f"{title}: hyperparameters"
        text = "Scores against the number in which configurations differ"
        pictures[text] = hyperparameters(frame, alike, shown, file, title=name)
    logs = {run.values["name"]: [] for run in runs if run.log is not None}
    for run in runs:
        if run.log is not None:
            logs[run.values["name"]].append(run.log)
    if logs:
        text = "Training of all seeds"
        pictures[text] = training_curves(logs, out / "curves.png", title=f"{title}: training")
    return pictures


def markdown(title: str, tables: list[Table]) -> str:
    """Tables as Markdown."""
    lines = [f"# {title}"]
    for table in tables:
        lines += ["", f"## {table.title}", "", table.note, ""]
        lines += [_line(table.header), "|---" * len(table.header) + "|", *map(_line, table.rows)]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(summary: pd.DataFrame, name: str, key: str, runs: int) -> str:
    """'0.357 ± 0.010 (0.360)', with n where it is not that of the configuration."""
    mean, spread, median, n = summary.loc[(name, key)]
    if n == 0:
        return "-"
    digits = 1 if key in FACTS else 3
    text = f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if n > 1 else "")
    return f"{text} ({median:.{digits}f})" + (f", n = {n:.0f}" if n < runs else "")


def _cell(value: Any, key: str) -> str:
    """One value of results.csv as text."""
    if value is None or value != value:  # nan
        return "-"
    if key == "commit":
        return value[:8] + "+" * value.endswith("+")  # files were changed
    if key in ("images_seen", "seed"):
        return f"{value:,}"
    return f"{value:.{1 if key in FACTS else 3}f}" if isinstance(value, float) else str(value)


def _name(run: Scored) -> str:
    return f"{run.values['name']} seed {run.values['seed']}"


def _detail(entry: dict[str, Any]) -> str:
    """The numbers that a score is made of, or why there is none."""
    parts = entry.get("per_factor", {}).items()
    return entry.get("reason") or ", ".join(f"{name} {value:.3f}" for name, value in parts)


def _hardware(start: dict[str, Any]) -> str:
    """'AMD EPYC, 2 cores, 1 threads, ...' of an entry of run.json."""
    facts = start.get("hardware", {})
    order = {"cpu": "{}", "cores": "{} cores", "threads": "{} threads", "device": "on {}"}
    order |= {"system": "{}", "python": "Python {}", "torch": "torch {}"}
    return ", ".join(text.format(facts[key]) for key, text in order.items() if key in facts)


if __name__ == "__main__":
    sys.exit(main())
