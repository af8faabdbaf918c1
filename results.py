"""Scores of runs: one row a run, means and standard deviations, and their text."""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import PermutationMethod, mannwhitneyu

from figures.page import Table
from metrics import LOWER_IS_BETTER, SCORES, model_centrality, udr
from metrics.information import entropy
from models.vae import gaussian_kl
from training.folder import read_record
from training.log import read_log

AGREEMENT = {"udr": udr, "model_centrality": model_centrality}  # of the seeds of a configuration
FACTS = ["recon", "kl", "images_seen", "minutes", "commit"]  # last columns of results.csv
MOST_COLUMNS = 6  # models; a table of more has a row for each
PARTS = ("kept", "held_out")  # of a data set, see dataset.keep
SMALLEST_GROUP = 3  # runs; with fewer a rank test cannot tell two configurations apart
ALL_SPLITS = 20_000  # a rank test counts every way to split two groups, up to this number


def read_scores(folder: Path, file: str = "metrics.json") -> dict[str, Any]:
    """The content of metrics.json; {"scores": {}} if there is none. ValueError if it is damaged."""
    path = folder / file
    if not path.exists():
        return {"scores": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for entry in content["scores"].values():
            float(entry["score"] or 0)
            entry.get("settings", {}).items()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged; delete it and run evaluate.py again") from error
    return content


def read_run(folder: Path, values: dict[str, Any], step: int) -> dict[str, Any]:
    """The row of a run in results.csv; ValueError if it has no scores of its checkpoint's step."""
    content, record = read_scores(folder), read_record(folder)
    if not content["scores"] or content.get("step") != step:
        command = f"python evaluate.py --metrics all --checkpoint {folder}"
        raise ValueError(f"{folder} has no scores of step {step:,}; for them: {command}")
    last = read_log(folder / "log.csv").iloc[-1]
    row = {"config": values["name"], "seed": values["seed"]}
    row |= {key: entry["score"] for key, entry in content["scores"].items()}
    row |= {"recon": last.get("recon"), "kl": last.get("kl")}
    row["images_seen"] = step * values["train"]["batch_size"]
    row["minutes"] = record.get("train_seconds", math.nan) / 60
    row["commit"] = record["starts"][-1].get("commit") if record["starts"] else None
    for part in PARTS:
        content = read_scores(folder, f"metrics_{part}.json")
        row |= {f"{key}_{part}": entry["score"] for key, entry in content["scores"].items()}
        row[f"recon_{part}"] = content.get("recon")
    return row


def as_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows of several runs, with the columns of results.csv in their order."""
    keys = [key for key in SCORES if any(key in row for row in rows)]
    of_parts = [f"{key}_{part}" for part in PARTS for key in (*keys, "recon")]
    of_parts = [key for key in of_parts if any(row.get(key) is not None for row in rows)]
    frame = pd.DataFrame(rows, columns=["config", "seed", *keys, *AGREEMENT, *FACTS, *of_parts])
    numbers = [*keys, *AGREEMENT, "recon", "kl", "minutes", *of_parts]
    return frame.astype(dict.fromkeys(numbers, float))


def with_parts(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with further rows: the scores of the kept and of the held-out images of a run."""
    frames = [frame]
    for part in PARTS:
        columns = {f"{key}_{part}": key for key in (*SCORES, "recon") if f"{key}_{part}" in frame}
        rows = frame.dropna(subset=list(columns), how="all") if columns else frame[:0]
        rows = rows[["config", "seed", "images_seen", *columns]].rename(columns=columns)
        frames.append(rows.assign(config=rows["config"] + f", {part.replace('_', ' ')}"))
    return pd.concat(frames)


def shared_rows(total: int, images: int = 10_000) -> np.ndarray:
    """The fixed random images on which runs are compared: (n,)."""
    return np.random.default_rng(0).choice(total, size=min(images, total), replace=False)


def agreement(metric: str, runs: Collection[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
    """A score of AGREEMENT for each run, from codes and log-variances (n, D) of the same images."""
    codes, kl = [codes for codes, _ in runs], None
    if all(logvar is not None for _, logvar in runs):
        kl = [latent_kl(*run) for run in runs]
    rng, rows = np.random.default_rng(0), len(codes[0])
    return np.array(AGREEMENT[metric](codes, rng, kl=kl, num_samples=rows))


def latent_kl(codes: np.ndarray, logvar: np.ndarray) -> np.ndarray:
    """KL of every latent to the prior N(0, 1) in nats, mean over the rows: (D,).

    A category, a code behind those with a log-variance, has its entropy instead.
    """
    mu, categories = np.split(codes, [logvar.shape[1]], axis=1)
    mu, logvar = (torch.from_numpy(np.asarray(array, np.float64)) for array in (mu, logvar))
    entropies = [entropy(np.unique(column, return_counts=True)[1]) for column in categories.T]
    return np.append(gaussian_kl(mu, logvar).mean(0).numpy(), entropies)


def against_baseline(frame: pd.DataFrame, baseline: str, columns: Sequence[str]) -> pd.DataFrame:
    """Which configurations differ from a baseline, by two-sided Mann-Whitney U tests.

    The rows are (config, column, p, p_holm). p is exact for few runs, also with ties; p_holm is
    corrected over all configurations of a column (Holm 1979).
    """
    rows = []
    for column in columns:
        groups = {name: runs.dropna() for name, runs in frame.groupby("config", sort=False)[column]}
        groups = {name: runs for name, runs in groups.items() if len(runs) >= SMALLEST_GROUP}
        reference = groups.pop(baseline, None)
        if reference is None:
            continue
        p = pd.Series(dtype=float)
        for name, runs in groups.items():
            splits = math.comb(len(runs) + len(reference), len(runs))
            method = PermutationMethod(n_resamples=ALL_SPLITS) if splits <= ALL_SPLITS else "auto"
            p[name] = mannwhitneyu(runs, reference, method=method).pvalue
        p = p.sort_values(kind="stable")
        holm = (p * np.arange(len(p), 0, -1)).clip(upper=1).cummax()
        rows += [(name, column, p[name], holm[name]) for name in p.index]
    return pd.DataFrame(rows, columns=["config", "column", "p", "p_holm"])


def text(mean: float | None, std: float | None = None, digits: int = 3) -> str:
    """A number as text, such as "0.815 ± 0.006"; "-" for a missing one."""
    if mean is None or math.isnan(mean):
        return "-"
    spread = "" if std is None or math.isnan(std) else f" ± {std:.{digits}f}"
    return f"{mean:z.{digits}f}{spread}"


def heading(key: str, name: str | None = None) -> str:
    """The name of a score in a table; it says so if lower is better."""
    return (name or key) + " (lower is better)" * (key in LOWER_IS_BETTER)


def score_table(scores: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Scores as in metrics.json by label of a model: a line a metric, a column a model, remarks."""
    keys = list(dict.fromkeys(key for entries in scores.values() for key in entries))
    columns, remarks = {}, {}
    for label, entries in scores.items():
        columns[label] = [text(entries.get(key, {}).get("score"), digits=4) for key in keys]
        for key, entry in entries.items():
            for kind in ("reason", "note"):
                if kind in entry:
                    remarks.setdefault(f"{key}: {entry[kind]}", []).append(label)
    table = pd.DataFrame(columns, index=[heading(key) for key in keys])
    lines = [(table if len(columns) <= MOST_COLUMNS else table.T).to_string()]
    for line, labels in remarks.items():
        models = dict.fromkeys(labels)
        lines.append(line if len(models) == len(scores) else f"{', '.join(models)}: {line}")
    return "\n".join(lines)


def markdown(table: Table) -> str:
    """A table in Markdown, without its title."""
    lines = ["| " + " | ".join(cells) + " |\n" for cells in [table.header, *table.rows]]
    return "".join([lines[0], "|---" * len(table.header) + "|\n", *lines[1:]])


def replace_tables(document: str, tables: dict[str, str]) -> str:
    """`document` with new tables between `<!-- table: NAME -->` and `<!-- end -->`."""
    start, *parts = document.split("<!-- table: ")
    for index, part in enumerate(parts):
        name, _, rest = part.partition(" -->")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"the marker '<!-- table: {name} -->' has no '<!-- end -->' behind it")
        if name in tables:
            parts[index] = f"{name} -->\n\n{tables[name]}\n<!-- end -->{after}"
    return "<!-- table: ".join([start, *parts])
