"""Figure 6 of the beta-VAE paper, whole: python figure6.py [--scores FILE ...]

Scores what needs no training (the true factors, raw pixels, PCA, ICA, an untrained VAE) with the
metrics of evaluate.py, puts trained models beside them (the JSON of `evaluate.py --checkpoint ...
--json`; by default all metrics*.json in res/2dshapes) and writes figure6.json, figure6.png and
figure6.md, tables of all metrics. What is scored stays in figure6_untrained.json: the same command
goes on from there.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA, FastICA
from tqdm import tqdm

from data import ImageData, load_dataset
from evaluate import DEFAULT_CONFIG, encode, metric_settings, write_json
from figures.charts import bars
from metrics import METRICS, code_of, score_all
from models import build_model
from training.checkpoint import write_atomically

PUBLISHED = Path("res/2dshapes")
COMPONENTS = 10  # of PCA and ICA, as in the paper
FITTED = 20_000  # random images that PCA and ICA are fitted to
SEEDS = 3
PAPER_METRIC = "beta_vae_paper"
SCORED = [key for key in METRICS if key != "mig_chen" and not key.startswith("dci_")]
SCORED += [key for key in METRICS if key.startswith("dci_fast")]
# Accuracy in % and its spread (Higgins et al. 2017, Figure 6), by our name of the row.
PAPER = {
    "ground truth": (100.0, np.nan),
    "raw pixels": (45.75, 0.8),
    "PCA": (84.9, 0.4),
    "ICA": (42.03, 10.6),
    "untrained VAE": (44.14, 2.5),
    "InfoGAN": (73.5, 0.9),
    "VAE": (61.58, 0.5),
    "beta-VAE": (99.23, 0.1),
}
NOTE = """*Mean ± standard deviation (ddof 1). Without training: n seeds of the metrics, of the
images that PCA and ICA are fitted to, and of the initial weights. Trained: n training seeds, one
seed of the metrics.*"""
# Names of trained configurations -> (row of the tables, row of the paper that it stands beside).
ROWS = {
    "twoD_infogan": ("InfoGAN", "InfoGAN"),
    "twoD_infogan_sn": ("InfoGAN, spectral norm", "InfoGAN"),
    "twoD_infogan_broadcast": ("InfoGAN, broadcast", "InfoGAN"),
    "twoD_infogan_cr": ("InfoGAN-CR", "InfoGAN"),
    "twoD_vae": ("VAE", "VAE"),
    "twoD": ("beta-VAE", "beta-VAE"),
}

Rows = dict[str, dict[str, dict[str, Any]]]  # row -> metric -> mean, spread, n


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scores",
        nargs="+",
        type=Path,
        default=[*sorted(PUBLISHED.glob("metrics_*.json")), PUBLISHED / "metrics.json"],
        help="what evaluate.py --checkpoint ... --json wrote for several runs; of a score that is "
        "in two files the first counts",
    )
    parser.add_argument("--out", type=Path, default=PUBLISHED, help=f"default: {PUBLISHED}")
    options = parser.parse_args(arguments)
    try:
        summary: Rows = {}
        for path in options.scores:
            for name, scores in read_summary(path).items():
                summary[name] = scores | summary.get(name, {})
        names = [*(name for name in ROWS if name in summary), *sorted(summary.keys() - ROWS.keys())]
        trained: Rows = {}
        for name in names:
            row = ROWS.get(name, (name, ""))[0]
            if row in trained or row in REPRESENTATIONS:
                raise ValueError(f"--scores: '{name}' is the row '{row}', which is there already")
            trained[row] = summary[name]
        options.out.mkdir(parents=True, exist_ok=True)
        rows = score_representations(load_dataset, options.out / "figure6_untrained.json") | trained
        write_json(options.out / "figure6.json", rows)
        text = tables(rows)
        write_atomically(options.out / "figure6.md", lambda file: file.write_text(text, "utf-8"))
        draw(rows, options.out / "figure6.png")
        print(text)
    except (ValueError, OSError) as error:
        print(f"figure6.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("figure6.py: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def read_summary(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Configuration -> metric -> mean, spread, n, protocol. Raises ValueError for another JSON."""
    if not path.is_file():
        raise ValueError(f"--scores: there is no file {path}")
    try:
        report = json.loads(path.read_text())
        summary = report["summary"]
        for run in report.get("runs", {}).values():
            for key, entry in run["scores"].items():
                if entry.get("protocol"):
                    summary[run["name"]][key]["protocol"] = entry["protocol"]
        summary = {
            name: {key: _checked(entry) for key, entry in scores.items()}
            for name, scores in summary.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--scores: {path} is not the JSON of evaluate.py for several checkpoints"
        ) from error
    lacking = [
        name
        for name, scores in summary.items()
        if PAPER_METRIC not in scores or scores[PAPER_METRIC]["mean"] is None
    ]
    if lacking:
        raise ValueError(f"--scores: {path} has no {PAPER_METRIC} for {', '.join(lacking)}")
    return summary


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """A metric's entry with numbers where the tables need them, or an error."""
    mean, spread = (None if (v := entry.get(k)) is None else float(v) for k in ("mean", "spread"))
    return entry | {"mean": mean, "spread": spread, "n": int(entry["n"])}


def true_factors(data: ImageData, seed: int) -> np.ndarray:
    """The factors themselves, each with a standard deviation of 1."""
    return _scaled(data.grid.factors(np.arange(len(data))))


def _scaled(codes: np.ndarray) -> np.ndarray:
    """Codes (N, D) with a standard deviation of 1."""
    return codes / codes.std(axis=0)


class RawPixels:
    """The images as codes of 4,096 pixels, unpacked only where a metric asks for rows."""

    def __init__(self, data: ImageData, seed: int):
        self.data, self.shape = data, (len(data), int(np.prod(data.image_shape)))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Pixels (n, 4096) of these images."""
        return self.data.batch(torch.as_tensor(rows)).flatten(1).numpy()


def pca(data: ImageData, seed: int) -> np.ndarray:
    """The first principal components of the pixels."""
    images = data.batch(data.random_index(FITTED, seed)).flatten(1).numpy()
    fitted = PCA(COMPONENTS, svd_solver="covariance_eigh").fit(images)
    mean, axes = (torch.from_numpy(np.float32(part)) for part in (fitted.mean_, fitted.components_))
    parts = torch.arange(len(data)).split(4096)
    return torch.cat([(data.batch(part).flatten(1) - mean) @ axes.T for part in parts]).numpy()


def ica(data: ImageData, seed: int) -> np.ndarray:
    """Independent components (FastICA) of the principal components, which whiten the pixels."""
    components = pca(data, seed)
    fitted = FastICA(COMPONENTS, whiten="unit-variance", max_iter=1000, random_state=seed)
    fitted.fit(components[data.random_index(FITTED, seed).numpy()])
    return fitted.transform(components)


def untrained_vae(data: ImageData, seed: int) -> np.ndarray:
    """Posterior means of a VAE with its initial weights, scaled to a standard deviation of 1.

    They vary by a few hundredths, which the classifiers' penalty and the pruning of the FactorVAE
    score would take for dead codes.
    """
    torch.manual_seed(seed)
    model = build_model(data.image_shape, {"name": "vae"}, {"name": "vae"}).eval()
    model = model.to(memory_format=torch.channels_last)  # encodes twice as fast
    return _scaled(encode(model, data, f"untrained VAE {seed}")[0])


REPRESENTATIONS = {  # f(data, seed) -> codes (N, D)
    "ground truth": true_factors,
    "raw pixels": RawPixels,
    "PCA": pca,
    "ICA": ica,
    "untrained VAE": untrained_vae,
}


def score_representations(load: Callable[[str], ImageData], kept: Path) -> Rows:
    """Row -> metric -> mean, spread (ddof 1) and n over seeds of what needs no training.

    load: the reader of data sets, called if something is left to score. kept: a JSON file, row ->
    metric -> the score of every seed, that grows with each; scores of other settings or of another
    version of the metrics are dropped.
    Raises ValueError where it is something else.
    """
    settings = json.loads(json.dumps(metric_settings(DEFAULT_CONFIG, [])))
    made_with = {"metrics_sha256": {key: code_of(key) for key in SCORED}, "settings": settings}
    made_with |= {"fitted": FITTED, "components": COMPONENTS}
    scores = _read_kept(kept, made_with)
    wanted = {name: [PAPER_METRIC] if name == "raw pixels" else SCORED for name in REPRESENTATIONS}
    jobs = [(seed, name) for name in wanted for seed in range(SEEDS)]
    jobs = [job for job in jobs if len(scores.get(job[1], {}).get(PAPER_METRIC, [])) <= job[0]]
    data = load("dsprites") if jobs else None
    for seed, name in (bar := tqdm(jobs, unit=" scored", disable=not jobs)):
        bar.set_description(name)
        found = score_all(
            REPRESENTATIONS[name](data, seed),
            data.grid,
            metrics=wanted[name],
            seed=seed,
            settings=settings,
        )
        row = scores.setdefault(name, {key: [] for key in found})
        for key, entry in found.items():
            row[key].append(entry["score"])
        write_json(kept, made_with | {"scores": scores})
    return {name: {k: _mean(v) for k, v in scores[name].items()} for name in wanted}


def _read_kept(path: Path, made_with: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Scores that an earlier call has left: none where there are none, or made otherwise."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
        return kept["scores"] if made_with.items() <= kept.items() else {}
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not what figure6.py writes: move it away") from error


def _mean(values: list[float]) -> dict[str, Any]:
    spread = float(np.std(values, ddof=1))
    return {"mean": float(np.mean(values)), "spread": spread, "n": len(values)}


def tables(rows: Rows) -> str:
    """Figure 6 beside the paper's numbers, then every other metric: two Markdown tables.

    The protocol of a metric is that of the first row that names it.
    """
    lines = ["| representation | ours, % | paper, % | n |", "|---|---|---|---|"]
    for name, scores in rows.items():
        ours, (mean, spread) = scores[PAPER_METRIC], _paper(name)
        paper = "-" if np.isnan(mean) else f"{mean:g}"
        paper += "" if np.isnan(spread) else f" ± {spread:g}"
        lines.append(f"| {name} | {_cell(ours, 100, 1)} | {paper} | {ours['n']} |")
    keys = dict.fromkeys(key for scores in rows.values() for key in scores if key != PAPER_METRIC)
    names = [name for name in rows if len(rows[name]) > 1]
    lines += ["", f"| metric | {' | '.join(names)} | protocol |", "|---" * (len(names) + 2) + "|"]
    for key in keys:
        found = [scores[key].get("protocol") for scores in rows.values() if key in scores]
        cells = [_cell(rows[name].get(key), 1, 3, rows[name][PAPER_METRIC]["n"]) for name in names]
        protocol = next(filter(None, found), "-")
        lines.append(f"| {key} | {' | '.join(cells)} | {protocol} |")
    lines += ["", NOTE]
    return "\n".join(lines) + "\n"


def _paper(name: str) -> tuple[float, float]:
    """The paper's score and spread for a row of ours; nan where there is none."""
    beside = next((paper for row, paper in ROWS.values() if row == name), name)
    return PAPER.get(beside, (np.nan, np.nan))


def _cell(score: dict[str, Any] | None, unit: float, digits: int, n: int | None = None) -> str:
    """Mean ± spread, and the number of seeds where it is not the row's n."""
    if score is None or score["mean"] is None:
        return "-"
    spread = score.get("spread")
    text = f"{unit * score['mean']:.{digits}f}"
    text += "" if spread is None else f" ± {unit * spread:.{digits}f}"
    return text if n in (None, score["n"]) else f"{text} (n = {score['n']})"


def draw(rows: Rows, path: Path) -> None:
    """Draw the bar chart: the paper's metric in per cent, ours and the paper's."""
    ours = [rows[name][PAPER_METRIC] for name in rows]
    paper = [_paper(name) for name in rows]
    bars(
        path,
        labels=list(rows),
        values=[100 * score["mean"] for score in ours],
        errors=[np.nan if s["spread"] is None else 100 * s["spread"] for s in ours],
        reference=[mean for mean, _ in paper],
        reference_errors=[spread for _, spread in paper],
        title="Disentanglement metric of the beta-VAE paper on 2D shapes (its Figure 6)",
        unit="accuracy on held-out points, % (4 factors: chance is 25 %)",
    )


if __name__ == "__main__":
    sys.exit(main())
