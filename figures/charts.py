"""Charts of numbers: what a log recorded, codes against factors, scores against published ones."""

import csv
import math
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator
from PIL import Image

from figures.canvas import ACTIVE_NATS, save_png

# Panel -> (unit, the columns of the log that it shows); the last one takes what no other claims.
PANELS = {
    "Reconstruction error": ("nats per image", r"recon"),
    "KL divergence": ("nats per image", r"kl|capacity"),
    "KL of each latent": ("nats", r"kl_\d+"),
    "Evidence lower bound": ("nats per image", r"elbo"),
    "Weight of the KL": ("beta", r"beta"),
    "Losses": ("nats", r"d_loss|g_loss|q_loss|cr"),
    "Information": ("nats", r"mi|tc|dwkl"),
    "Covariance off and on the diagonal": ("squared distance to 0 and 1", r"dip_od|dip_d"),
    "Information bound of each code": ("nats", r"mi_\d+"),
    "Accuracy of the discriminator": ("share right", r"d_real|d_fake"),
    "Diversity of real and made images": ("standard deviation", r"std_real|std_fake"),
    "Other terms": ("as logged", r".+"),
}
UNDRAWN = ("loss", "r1")  # unless there is nothing else: sums and penalties of what is drawn
LABELS = 13  # that fit beside a panel
LOG_FROM = 5  # a reconstruction error that fell by this factor is drawn on a log scale
FAINT = 0.05  # rows of a matrix below this share of its maximum follow no factor
INK, GREY, OURS, PAPER = "#1e1e1e", "#8c8c8c", "#2a6fb0", "#cd5500"
SETTINGS = {"dpi": 100, "layout": "constrained", "facecolor": "white"}
matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is one


def loss_curves(log_csv: str | PathLike, path: str | PathLike, *, title: str) -> Path:
    """Draw the terms of a training log (columns step, images and terms) against steps.

    Which panels there are follows from the columns (PANELS). Raises ValueError if there is no term,
    or no row.
    """
    log = _read_log(log_csv)
    terms = [name for name in log if name not in ("step", "images")]
    left, panels = [name for name in terms if name not in UNDRAWN] or terms, {}
    for name, (unit, pattern) in PANELS.items():
        if columns := [column for column in left if re.fullmatch(pattern, column)]:
            panels[name] = unit, columns
            left = [column for column in left if column not in columns]
    if not panels or "step" not in log:
        raise ValueError(f"{log_csv}: no numbers to draw; a step and a term are needed")
    steps = log["step"]
    window = 2 * (len(steps) // 60) + 1
    note = f"bold and numbers: running mean of {window} logged rows; faint: as logged"
    if "images" in log and steps[-1] > 0:
        images = log["images"][-1]
        note += f"; {images / steps[-1]:.0f} images a step, {images:,.0f} in all"
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(9.6, 0.7 + 2.6 * rows), **SETTINGS)
    figure.suptitle(f"{title}\n\n", x=0.01, ha="left", fontweight="bold", fontsize=12)
    figure.text(0.01, 1 - 0.33 / figure.get_figheight(), note, fontsize=9, va="top", color=INK)
    grid = figure.subplots(rows, 2, squeeze=False).flat
    for ax, (name, (unit, columns)) in zip(grid, panels.items(), strict=False):
        _draw_terms(ax, steps, {column: log[column] for column in columns}, window)
        ax.set_title(name, loc="left", fontsize=10)
        ax.set_ylabel(unit)
        ax.set_xlabel("steps")
    for ax in grid[len(panels) :]:
        ax.remove()
    return save_chart(figure, path)


def matrix(
    values: np.ndarray,
    path: str | PathLike,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    kind: str,
) -> Path:
    """Draw codes x factors (D, K), non-negative, as a heat map with the numbers in the cells.

    Rows are sorted by the factor that they follow, then by how much; `kind` says what is measured.
    """
    values = np.asarray(values, dtype=np.float64)
    top = max(np.nanmax(values), 1e-12)
    faint = values.max(axis=1) < FAINT * top
    order = np.lexsort((-values.max(axis=1), values.argmax(axis=1), faint))
    shown = values[order]
    size = (2.6 + 0.8 * len(columns), 1.5 + 0.32 * len(rows))
    figure = Figure(figsize=size, **SETTINGS)
    ax = figure.subplots()
    picture = ax.imshow(shown, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    figure.colorbar(picture, label=kind)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), [rows[row] for row in order])
    ax.tick_params(length=0, labelsize=9)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    for (row, column), value in np.ndenumerate(shown):
        ink = "white" if value > 0.6 * top else INK
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=ink)
    return save_chart(figure, path)


def best_factors(values: np.ndarray, names: Sequence[str]) -> list[str]:
    """Name for each code the factor that it follows best, with its share: "posX 83 %".

    `values` (D, K) is a matrix of mutual information or importance; the share is the factor's part
    of the code's row. Codes below FAINT of the largest entry follow none and get "".
    """
    values = np.asarray(values, dtype=np.float64)
    best, faint = values.argmax(axis=1), values.max(axis=1) <= FAINT * values.max()
    return [
        "" if faint[code] else f"{names[k]} {values[code, k] / values[code].sum():.0%}"
        for code, k in enumerate(best)
    ]


def bars(
    path: str | PathLike,
    *,
    labels: Sequence[str],
    values: Sequence[float],
    errors: Sequence[float],
    reference: Sequence[float],
    reference_errors: Sequence[float],
    title: str,
    unit: str,
) -> Path:
    """Draw scores as horizontal bars, first on top, beside the paper's figures as diamonds.

    All sequences have one entry per label; nan stands for a figure that there is not.
    """
    y = np.arange(len(labels))
    figure = Figure(figsize=(8.6, 1.3 + 0.42 * len(labels)), **SETTINGS)
    ax = figure.subplots()
    ax.barh(y, np.nan_to_num(values), height=0.62, color=OURS, alpha=0.5)
    ax.errorbar(values, y, xerr=errors, fmt="none", ecolor=OURS, capsize=4)
    ax.errorbar(reference, y, xerr=reference_errors, fmt="D", color=PAPER, markersize=5, capsize=3)
    sides = [("ours", values, errors, OURS, 80), ("paper", reference, reference_errors, PAPER, 165)]
    for name, scores, spreads, colour, right in sides:
        texts = [
            "-" if np.isnan(score) else f"{score:.1f}" + (f" ± {spread:.1f}" if spread >= 0 else "")
            for score, spread in zip(scores, spreads, strict=True)
        ]
        for row, text in zip([-0.8, *y], [name, *texts], strict=True):
            at = {
                "xytext": (right, 0),
                "textcoords": "offset points",
                "ha": "right",
                "va": "center",
            }
            where = {"xy": (1, row), "xycoords": ax.get_yaxis_transform(), "annotation_clip": False}
            ax.annotate(text, **where, **at, fontsize=9, color=colour)
    ax.set_yticks(y, labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.set_xlim(left=0)
    ax.set_xlabel(unit)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=18)
    ax.spines[["top", "right"]].set_visible(False)
    return save_chart(figure, path)


def _read_log(path: str | PathLike) -> dict[str, np.ndarray]:
    """The columns as floats; an empty cell is nan.

    Rows without a step and columns without a number are left out.
    """
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("step")]
    names = [name for name in (rows[0] if rows else []) if name]
    columns = {name: np.array([_number(row[name]) for row in rows]) for name in names}
    return {name: values for name, values in columns.items() if np.isfinite(values).any()}


def _number(text: str | None) -> float:
    """The number in a cell; nan where there is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over an odd window, over what there is of it at the ends and beside gaps."""
    there, ones = np.isfinite(values), np.ones(window)
    total = np.convolve(np.where(there, values, 0), ones, "same")
    count = np.convolve(there, ones, "same")
    return np.where(there, total / np.maximum(count, 1), np.nan)


def _draw_terms(ax: Axes, steps: np.ndarray, terms: dict[str, np.ndarray], window: int) -> None:
    """Draw each term raw and smoothed, with its name and last value at its right end."""
    curves = {name: _smooth(values, window) for name, values in terms.items()}
    last = {name: curve[np.isfinite(curve)][-1] for name, curve in curves.items()}
    numbered = all(re.search(r"_\d+$", name) for name in terms)
    names = sorted(terms, key=last.get, reverse=True) if numbered else list(terms)
    labels, rest = [], []
    for rank, name in enumerate(names):
        alive = not numbered or last[name] >= ACTIVE_NATS
        style = {
            "color": f"C{rank % 10}" if alive else GREY,
            "linestyle": "-" if rank < 10 else "--",
        }
        ax.plot(steps, terms[name], alpha=0.25, linewidth=0.8, **style)
        ax.plot(steps, curves[name], linewidth=1.6, marker="o" if len(steps) == 1 else "", **style)
        if alive and len(labels) < LABELS:
            digits = 1 if abs(last[name]) >= 10 else 2
            text = f"{re.sub(r'^(kl|mi)_', 'z', name)} {last[name]:.{digits}f}"
            labels.append((last[name], text, style["color"]))
        else:
            rest.append(last[name])
    if rest:
        text = f"{len(rest)} more" if rest[0] >= ACTIVE_NATS else f"{len(rest)} below {ACTIVE_NATS}"
        labels.append((rest[0], text, GREY))
    if names == ["recon"] and curves["recon"][0] > LOG_FROM * last["recon"] > 0:
        log_scale(ax)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
    ax.margins(x=0)
    ax.autoscale_view()  # settles the limits, from which the heights of the labels follow
    to_share = ax.transScale + ax.transLimits  # data -> shares of the panel
    heights = _spread([to_share.transform((steps[-1], value))[1] for value, _, _ in labels])
    for height, (_, text, colour) in zip(heights, labels, strict=True):
        at = {"xy": (1.01, height), "xycoords": "axes fraction", "annotation_clip": False}
        ax.annotate(text, **at, va="center", fontsize=9, color=colour)


def log_scale(ax: Axes) -> None:
    """Put y on a log scale with plain numbers at 1, 2, 5, 10, ..."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _spread(heights: Sequence[float], gap: float = 0.075) -> np.ndarray:
    """Move heights between 0 and 1 apart by at least a gap, in their order, and not above 1."""
    order, ramp = np.argsort(heights, kind="stable"), gap * np.arange(len(heights))
    moved = np.maximum.accumulate(np.asarray(heights)[order] - ramp) + ramp
    spread = np.empty(len(heights))
    spread[order] = np.minimum(moved, 1 - ramp[::-1])
    return spread


def save_chart(figure: Figure, path: str | PathLike) -> Path:
    """Rasterise with Agg and write as a small PNG."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return save_png(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]), path, 256)
