"""Charts of numbers: curves over training, codes against factors, and scores of many runs."""

import io
import re
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator
from PIL import Image

from figures.canvas import to_png
from figures.latents import ACTIVE_NATS

PANELS = {  # panel -> the terms of a log in it; the last one takes what no other claims
    "Reconstruction error, nats per image": r"recon",
    "KL divergence, nats per image": r"kl|kl_category|capacity",
    "KL of each latent, nats": r"kl_\d+",
    "Losses, nats": r"d_loss|g_loss|q_loss|cr",
    "Information, nats": r"mi|mi_category|tc|dwkl",
    "Information bound of each code, nats": r"mi_\d+",
    "Accuracy of the discriminator": r"d_real|d_fake",
    "Other terms": r".+",
}
UNDRAWN = {"loss", "elbo", "r1"}  # sums and penalties; drawn where there is nothing else
COMPARED = {"recon": "Reconstruction error", "kl": "KL divergence"}  # panels of training_curves
POINTS = 60  # a curve is smoothed over this share of its rows
FAINT = 0.05  # rows of a matrix below this share of its maximum follow no factor
COLUMNS = 4  # panels of score_dots beside each other
WIDTH, NARROW = 8.5, 4.25  # inches of 100 pixels: as wide as a README, and half of it
INK, OURS, PAPER = "#1e1e1e", "#2a6fb0", "#cd5500"
TAB20 = matplotlib.colormaps["tab20"].colors  # a strong and a light one of ten colours
STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 8,  # points: 11 pixels
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=TAB20[::2] + TAB20[1::2]),
    "legend.frameon": False,
    "legend.labelspacing": 0.25,
    "text.parse_math": False,  # a $ in a name is a $
}
styled = matplotlib.rc_context(STYLE)  # decorates every function that draws a chart


def new_figure(title: str, note: str, width: float, height: float) -> Figure:
    """Return a figure with a title and a line below it; sizes in inches."""
    figure = Figure(figsize=(width, height))
    figure.suptitle(f"{title}\n{note}", x=0.01, ha="left")
    return figure


def to_bytes(figure: Figure) -> bytes:
    """Return a figure as a small PNG."""
    data = io.BytesIO()
    figure.savefig(data)
    return to_png(Image.open(data).convert("RGB"))


@styled
def log_curves(log: pd.DataFrame, *, title: str, panels: dict[str, str] = PANELS) -> bytes:
    """Draw each column of a log as a running mean with its name and last value: a PNG.

    `panels` maps titles to the pattern of the columns, unless an earlier panel has them. ValueError
    if there is no row or no column with numbers.
    """
    numbers = log.select_dtypes("number").dropna(axis="columns", how="all")
    terms = [name for name in numbers if name not in ("step", "images", "minutes")]
    if not terms:
        raise ValueError("the log has no numbers to draw; at least one row with a term is needed")
    left, columns_of = [term for term in terms if term not in UNDRAWN] or terms, {}
    for name, pattern in panels.items():
        if columns := [term for term in left if re.fullmatch(pattern, term)]:
            columns_of[name] = columns
        left = [term for term in left if term not in columns]

    window = 2 * (len(log) // POINTS) + 1
    images, steps = log["images"].iloc[-1], log["step"].iloc[-1]
    note = f"Running mean of {window} rows; {images:,} images in {steps:,} steps."
    heights = [max(1.4, 0.4 + 0.15 * len(columns)) for columns in columns_of.values()]  # of legends
    figure = new_figure(title, note, NARROW, 0.45 + sum(heights))
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (name, columns) in zip(axes, columns_of.items(), strict=True):
        smooth = log[columns].rolling(window, center=True, min_periods=1).mean()
        last = smooth.ffill().iloc[-1].sort_values(ascending=False, kind="stable")
        inactive = last.index[last.index.str.contains(r"_\d+$") & (last < ACTIVE_NATS)]
        for column in last.index.drop(inactive):
            label = re.sub("^(kl|mi)_", "z", column)
            ax.plot(log["step"], smooth[column], label=f"{label} {last[column]:z.2f}")
        if ax.lines:
            ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        ax.plot(log["step"], smooth[inactive], color="lightgrey")  # latents and codes, no label
        ax.set_title(f"{name} ({len(inactive)} below {ACTIVE_NATS})" if len(inactive) else name)
        if columns == ["recon"]:
            log_scale(ax)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
    ax.set_xlabel("steps")
    return to_bytes(figure)


@styled
def training_curves(logs: dict[str, list[pd.DataFrame]], *, title: str) -> bytes:
    """Draw reconstruction error and KL of configurations, each with the logs of its runs: a PNG."""
    note = "Nats per image. Line: mean over the seeds; band: lowest to highest seed."
    figure = new_figure(title, note, WIDTH, 2.2 + 0.17 * -(-len(logs) // 3))
    axes = figure.subplots(1, len(COMPARED))
    for ax, (term, name) in zip(axes, COMPARED.items(), strict=True):
        for config, runs in logs.items():
            rows = pd.concat(runs)
            if term in rows:
                seeds = rows.groupby("images")[term].agg(["mean", "min", "max"])
                ax.plot(seeds["mean"], label=f"{config} (n = {len(runs)})")
                ax.fill_between(seeds.index, seeds["min"], seeds["max"], alpha=0.2)  # same colour
        ax.set_title(name)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_xlabel("images")
    log_scale(axes[0])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return to_bytes(figure)


def log_scale(ax: Axes) -> None:
    """Put y on a log scale with plain numbers, if it is positive and spans two of the ticks."""
    low, high = ax.dataLim.intervaly
    if not 0 < 2.5 * low < high:  # densities have negative errors
        return
    ax.set_yscale("log")
    ax.set_title(f"{ax.get_title('left')}, log scale")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()


def best_factors(values: np.ndarray, names: Sequence[str]) -> list[str]:
    """Name the factors that each code follows, from information or importance (D, K).

    These are the factors with at least half of the code's largest value; more than two are
    "mixed". A code whose values are all below FAINT of the largest one gets "".
    """
    labels = []
    for row in values:
        followed = [names[k] for k in np.argsort(-row, kind="stable") if row[k] >= row.max() / 2]
        label = " + ".join(followed) if len(followed) <= 2 else "mixed"
        labels.append(label if row.max() > FAINT * values.max() else "")
    return labels


def matrix(values: np.ndarray, factors: Sequence[str], *, title: str, kind: str) -> bytes:
    """Draw codes x factors (D, K), non-negative, as a heat map with numbers in the cells: a PNG.

    Rows are sorted by the factor with the largest value, then by that value; faint ones come last.
    `kind` says what the values are, with their unit.
    """
    largest = values.max(axis=1)
    order = np.lexsort((-largest, values.argmax(axis=1), largest <= FAINT * values.max()))
    table = pd.DataFrame(values, [f"z{d}" for d in range(len(values))], factors).iloc[order]
    return _heat_map(table, title, kind, cmap="Blues", vmin=0, vmax=max(values.max(), 1e-12))


def rank_correlation(frame: pd.DataFrame, labels: dict[str, str], *, title: str) -> bytes:
    """Draw Spearman's rank correlation of every two metrics (column -> label), as a PNG."""
    table = frame[list(labels)].rename(columns=labels).corr("spearman")
    note = f"Spearman's rank correlation over {len(frame)} runs."
    return _heat_map(table, title, note, cmap="RdBu_r", vmin=-1, vmax=1)


@styled
def _heat_map(table: pd.DataFrame, title: str, note: str, **look) -> bytes:
    rows, columns = list(table.index), list(table.columns)
    width = min(WIDTH, 1.2 + 0.07 * max(map(len, rows)) + 0.6 * len(columns))
    figure = new_figure(title, note, width, 1.2 + 0.27 * len(rows))
    ax = figure.subplots()
    ax.imshow(table, aspect="auto", **look)
    ax.set_xticks(range(len(columns)), columns, rotation=90 * (max(map(len, columns)) > 12))
    ax.set_yticks(range(len(rows)), rows)
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if abs(value) > 0.65 * look["vmax"] else INK
        ax.text(column, row, f"{value:z.2f}", ha="center", va="center", color=ink, fontsize=7)
    return to_bytes(figure)


@styled
def bars(rows: dict[str, Sequence[float]], *, title: str, unit: str) -> bytes:
    """Draw scores as horizontal bars beside the paper's as diamonds, as a PNG.

    A row is a score, its spread, the paper's score and its spread; an unknown spread is nan.
    """
    values, errors, paper, paper_errors = np.array(list(rows.values()), dtype=float).T
    names = [f"{name}: {v:.1f} (paper {p:.1f})" for name, (v, _, p, _) in rows.items()]
    names = [name.replace(" (paper nan)", "") for name in names]
    note = f"{unit}; bars: ours, diamonds: the paper's"
    figure = new_figure(title, note, WIDTH, 0.9 + 0.3 * len(rows))
    ax = figure.subplots()
    ax.barh(names, values, xerr=errors, color=OURS, alpha=0.5, ecolor=OURS, capsize=4)
    ax.errorbar(paper, names, xerr=paper_errors, fmt="D", color=PAPER, markersize=5, capsize=3)
    ax.invert_yaxis()  # the first row is on top
    return to_bytes(figure)


@styled
def score_dots(
    frame: pd.DataFrame, labels: dict[str, str], *, title: str, published: Sequence[str] = ()
) -> bytes:
    """Draw a panel for each metric: a row for each configuration, a dot for each seed, as a PNG.

    `labels` maps columns to names of metrics; rows are sorted by the mean of the first one. Rows
    in `published` hold a value of a paper.
    """
    means = frame.groupby("config")[list(labels)].mean()
    means = means.sort_values(next(iter(labels)), ascending=False, kind="stable")
    names, lines = list(means.index), -(-len(labels) // COLUMNS)
    first, *_ = labels.values()
    note = f"Sorted by {first}. A dot is a seed; bar and number: the mean of a configuration."
    note += " Diamonds: values of papers." * bool(published)
    papers = frame["config"].isin(published)
    figure = new_figure(title, note, WIDTH, 0.45 + lines * (0.5 + 0.2 * len(names)))
    axes = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False).flat
    for ax, (column, label) in zip(axes, labels.items(), strict=False):
        rows = frame["config"].map(names.index)
        ax.plot(frame[column][~papers], rows[~papers], "o", color=OURS, alpha=0.4, ms=4)
        ax.plot(frame[column][papers], rows[papers], "D", color=PAPER, ms=5)
        ours = means[column].where(~means.index.isin(published))
        ax.plot(ours, range(len(names)), "|", color=INK, ms=12, mew=1.5)
        for name, mean in means[column].dropna().items():
            place = {"transform": ax.get_yaxis_transform(), "va": "center"}  # right of the panel
            ax.text(1.02, names.index(name), f"{mean:.2f}", **place)
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="x", color="#e4e4e4")
        ax.set_title(textwrap.fill(label, 24))
    axes[0].invert_yaxis()  # shared by all panels
    for ax in axes[len(labels) :]:
        ax.remove()
    return to_bytes(figure)
