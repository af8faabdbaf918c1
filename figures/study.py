"""Charts of many runs, from data frames: scores, their correlation, hyperparameters, curves.

A frame has a row a run, with the columns `config` and `seed` and those that `labels` (column ->
what it is called) names; the order of the rows is that of the configurations.
"""

import textwrap
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from figures.charts import GREY, INK, LOG_FROM, OURS, SETTINGS, log_scale, save_chart

WIDE = 4  # panels beside each other
TERMS = ("recon", "kl", "d_loss", "g_loss", "mi")  # of a log, in nats
JOINED = 3  # seeds or more: their median stands for a configuration
LOG_X = 4  # values of a hyperparameter that span this factor stand on a log scale
TITLE = 32  # letters on a line above a panel
ROUNDING = 1e-9  # by so much a score in 0 ... 1 may miss its range
DOT = {"linestyle": "", "marker": "o", "color": OURS, "alpha": 0.6, "markersize": 5}


def score_dots(
    frame: pd.DataFrame, labels: dict[str, str], path: str | PathLike, *, title: str
) -> Path:
    """Draw a panel a metric: a row a configuration, a dot a run, the median as a bar and number."""
    names = list(dict.fromkeys(frame["config"]))
    columns, rows = min(WIDE, len(labels)), -(-len(labels) // WIDE)
    left = 0.085 * max(map(len, names))  # inches, of names in 9 pt
    size = (0.5 + left + 2.5 * columns, 0.7 + rows * (0.75 + 0.36 * len(names)))
    figure = Figure(figsize=size, **SETTINGS)
    _title(figure, title, "a dot is a seed; bar and number: the median of a configuration")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    figure.get_layout_engine().set(wspace=0.06)  # a median stands nearer to its own panel
    for ax, (column, label) in zip(axes, labels.items(), strict=False):
        for y, name in enumerate(names):
            values = frame.loc[frame["config"] == name, column].dropna().to_numpy()
            if not len(values):
                ax.annotate("-", (1.02, y), xycoords=ax.get_yaxis_transform(), va="center")
                continue
            apart = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else [0]
            ax.plot(values, y + np.asarray(apart), **DOT)
            median = np.median(values)
            ax.plot([median, median], [y - 0.36, y + 0.36], color=INK, linewidth=2)
            at = {"xy": (1.02, y), "xycoords": ax.get_yaxis_transform(), "annotation_clip": False}
            ax.annotate(f"{median:.3f}", **at, va="center", fontsize=9, color=INK)
        if frame[column].dropna().between(-ROUNDING, 1 + ROUNDING).all():
            largest = frame[column].max() - ROUNDING
            right = next(edge for edge in (0.25, 0.5, 1) if largest <= edge)
            ax.set_xlim(-0.03 * right, 1.03 * right)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.grid(axis="x", color="#e4e4e4")
        ax.set_axisbelow(True)
        _style(ax, textwrap.fill(label, TITLE))
    for ax in axes[len(labels) :]:
        ax.remove()
    return save_chart(figure, path)


def rank_correlation(
    frame: pd.DataFrame, labels: dict[str, str], path: str | PathLike, *, title: str
) -> Path:
    """Draw Spearman's rank correlation of every two metrics over all runs, numbers in the cells.

    A metric that is the same in all runs has none: its cells show a dash.
    """
    values = frame[list(labels)].corr("spearman").to_numpy()
    there = frame[list(labels)].notna().astype(int)
    runs = np.unique(there.T @ there)  # of every two metrics
    several = f"{runs[0]} to {runs[-1]}" if len(runs) > 1 else f"{runs[0]}"
    inches = 0.52 * len(labels)
    text = 0.08 * max(map(len, labels.values()))
    figure = Figure(figsize=(inches + text + 1.6, inches + text + 0.9), **SETTINGS)
    _title(figure, title, f"Spearman's rank correlation over {several} runs")
    ax = figure.subplots()
    picture = ax.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(picture, shrink=0.7)
    ax.set_xticks(range(len(labels)), labels.values(), rotation=90)
    ax.set_yticks(range(len(labels)), labels.values())
    ax.tick_params(length=0, labelsize=9)
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if abs(value) > 0.7 else INK
        text = f"{value:.2f}".replace("0.", ".") if np.isfinite(value) else "-"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color=ink)
    return save_chart(figure, path)


def hyperparameters(
    frame: pd.DataFrame,
    families: dict[str, list[dict[str, float]]],
    labels: dict[str, str],
    path: str | PathLike,
    *,
    title: str,
) -> Path:
    """Draw scores against the number in which configurations differ, a row a family.

    families: key -> groups of configuration -> value, as metrics.study.families gives them.
    """
    rows = [(key, group) for key, groups in families.items() for group in groups]
    figure = Figure(figsize=(0.6 + 2.5 * len(labels), 0.8 + 2.5 * len(rows)), **SETTINGS)
    note = f"a dot is a seed; the line joins the medians of {JOINED} seeds or more"
    _title(figure, title, note)
    axes = figure.subplots(len(rows), len(labels), squeeze=False)
    for row, (key, group) in zip(axes, rows, strict=True):
        runs = frame[frame["config"].isin(group)]
        x = runs["config"].map(group).astype(float)
        for ax, (column, label) in zip(row, labels.items(), strict=True):
            ax.plot(x, runs[column], **DOT)
            found = runs[column].groupby(x).agg(["median", "count"])
            medians = found["median"][found["count"] >= JOINED]
            ax.plot(medians.index, medians, color=INK, marker="_", linewidth=1.2)
            if min(group.values()) > 0 and max(group.values()) >= LOG_X * min(group.values()):
                ax.set_xscale("log")
            ticks = sorted(set(group.values()))
            ax.set_xticks(ticks, [f"{value:g}" for value in ticks])
            ax.set_xticks([], minor=True)
            ax.set_xlabel(key)
            _style(ax, label)
        names = textwrap.fill(", ".join(group), 32 * len(labels))
        row[0].set_title(f"{names}\n{row[0].get_title(loc='left')}", loc="left", fontsize=10)
    return save_chart(figure, path)


def training_curves(
    logs: dict[str, list[pd.DataFrame]], path: str | PathLike, *, title: str
) -> Path:
    """Draw the terms of the logs of all seeds: a row a configuration, the mean and its range.

    logs: configuration -> the log.csv (columns step and terms) of each of its runs. Terms are those
    of TERMS, or the first ones of a log that has none of them.
    """
    panels = {}
    for name, runs in logs.items():
        there = list(dict.fromkeys(term for log in runs for term in log))
        others = [term for term in there if term not in ("step", "images")]
        panels[name] = [term for term in TERMS if term in there] or others[: len(TERMS)]
    columns = max(map(len, panels.values()))
    figure = Figure(figsize=(0.8 + 3.4 * columns, 0.7 + 2.3 * len(panels)), **SETTINGS)
    _title(figure, title, "line: mean over seeds; shaded: from the lowest to the highest")
    axes = figure.subplots(len(panels), columns, squeeze=False)
    for row, (name, terms) in zip(axes, panels.items(), strict=True):
        for ax, term in zip(row, terms, strict=False):
            runs = [log.set_index("step")[term] for log in logs[name] if term in log]
            seeds = pd.concat(runs, axis=1).sort_index()
            mean = seeds.mean(axis=1)
            ax.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), alpha=0.25)
            ax.plot(seeds.index, mean, linewidth=1.4, marker="o" if len(seeds) == 1 else "")
            if term == "recon" and mean.iloc[0] > LOG_FROM * mean.iloc[-1] > 0:
                log_scale(ax)
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.set_xlabel("steps", fontsize=9)
            ax.set_ylabel("nats", fontsize=9)
            ax.margins(x=0)
            _style(ax, f"{name}: {term} {mean.iloc[-1]:.2f}  (n = {len(runs)})")
        for ax in row[len(terms) :]:
            ax.remove()
    return save_chart(figure, path)


def _title(figure: Figure, title: str, note: str) -> None:
    """Bold title with a grey line under it, left-aligned."""
    figure.suptitle(f"{title}\n\n", x=0.01, ha="left", fontweight="bold", fontsize=12)
    height = 1 - 0.33 / figure.get_figheight()
    figure.text(0.01, height, note, fontsize=9, va="top", color=GREY)


def _style(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", fontsize=10)
    ax.tick_params(labelsize=9)
    ax.spines[["top", "right"]].set_visible(False)
