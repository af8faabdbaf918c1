"""Score and draw trained models: python evaluate.py --checkpoint runs/twoD/seed0

Codes of any model: python evaluate.py --codes codes.npz --metrics mig,dci
Representations without training: python evaluate.py --baseline pca,ica
"""

import argparse
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import config
import files
import results
import runs
from codes import BASELINES, pack_codes, read_codes
from data import load_dataset
from figures.charts import matrix
from metrics import METRICS, SCORES, VERSIONS, as_samples, complete_settings, score_all, select
from training.device import choose_device, hardware
from training.folder import provenance

DEFAULT_METRICS = "beta_vae_paper,factor_vae,mig"
DEFAULT_CONFIG = Path(__file__).resolve().parent / "config" / "metrics.yaml"
OVERRIDE = re.compile(r"[a-z_]+\.[a-z_]+=")
EVALUATED = Path("runs/evaluated")  # results of weights that lie outside of a run folder
COLLAPSED = 0.05  # nats: a VAE with less KL in all latents together ignores its input
BASELINE_SEEDS = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Metrics: all, {', '.join(METRICS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, what = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", nargs="+", metavar="PATH", help="run folders or weights")
    what.add_argument(
        "--codes",
        nargs="+",
        metavar="NPZ",
        help="codes (N, D); optional: factors (N, K) or sizes (K,) of a full row-major grid, "
        "names (K,), logvar (N, D)",
    )
    what.add_argument("--baseline", metavar="NAMES", help=f"of dSprites: {', '.join(BASELINES)}")
    add("--metrics", default=DEFAULT_METRICS, help=f"default: {DEFAULT_METRICS}")
    add("--config", type=Path, default=DEFAULT_CONFIG, help="settings of the metrics")
    add("--seed", type=int, default=0, help="seed of the metrics' samples")
    add("--samples", choices=("fixed", "auto"), default="fixed", help="auto: fewer if data are few")
    add("--min-kl", type=float, metavar="NATS", help="latents with a smaller KL count as constant")
    add("--continuous", default="", metavar="FACTORS", help="factors that are no classes: a,b")
    add("--bins", default="", metavar="FACTOR=N", help="bin a factor's values: angle=20,size=5")
    add("--without", default="", metavar="FACTORS", help="factors that are not scored: a,b")
    add("--write-codes", type=Path, metavar="NPZ", help="write the codes of one checkpoint")
    add("--encode", metavar="NPZ", help="with --write-codes: encode these pictures instead")
    add("--out", type=Path, help="folder for metrics.json and pictures")
    add("--json", type=Path, help="write all scores to this file too")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("overrides", nargs="*", metavar="key=value", help="mig.num_bins=10 dataset.path=...")
    options = parser.parse_intermixed_args(arguments)
    for key in ("checkpoint", "codes"):  # these lists also take the overrides that follow them
        words = getattr(options, key) or []
        paths = [w for w in words if Path(w).exists() or not OVERRIDE.match(w)]
        options.overrides += [word for word in words if word not in paths]
        setattr(options, key, [Path(path) for path in paths])
    return runs.exit_code("evaluate.py", lambda: evaluate(options))


def evaluate(options: argparse.Namespace) -> int:
    """Score what the command line names; print a table."""
    options.metrics = select(options.metrics.split(","))
    of_data = [text for text in options.overrides if text.startswith("dataset.")]
    of_metrics = [text for text in options.overrides if text not in of_data]
    options.settings = metric_settings(options.config, of_metrics)
    if options.seed < 0:
        raise ValueError(f"--seed: {options.seed} is not allowed; allowed: 0 or more")
    if options.encode and not options.write_codes:
        raise ValueError("--encode needs --write-codes")
    if options.write_codes:
        return write_codes(options, of_data)
    if options.codes:
        rows = score_codes(options)
    elif options.baseline:
        rows = score_baselines(options)
    else:
        rows = score_checkpoints(options, of_data)
    if options.json:
        files.write(options.json, as_json(rows))
    print(results.score_table(rows))
    has_score = any(entry["score"] is not None for row in rows.values() for entry in row.values())
    return 0 if has_score else 1


def metric_settings(path: Path, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """The settings of a YAML file with overrides: metric -> keyword arguments."""
    values = config.apply_overrides(config.read_yaml(path), overrides)
    settings = config.validate(config.sections_schema("Metrics", METRICS), values, complete=False)
    return {name: section for name, section in settings.items() if section}


def score_checkpoints(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Encode, score and draw every checkpoint: label -> scores."""
    if len({path.resolve() for path in options.checkpoint}) < len(options.checkpoint):
        raise ValueError("--checkpoint: a path is given twice")
    rows, groups = {}, defaultdict(list)
    for path in options.checkpoint:
        run = runs.load(path, options.device, overrides)
        folder = output_folder(run, options.out, several=len(options.checkpoint) > 1)
        facts = {"checkpoint_sha256": run.sha256, "data": run.data.fingerprint}
        facts |= {"step": run.step, "images_seen": run.images_seen}
        facts |= {"precision": str(run.model.dtype).removeprefix("torch.")}
        scores = score(folder, facts, lambda run=run: encoded(run), options)
        draw(run, folder, scores)
        rows[run.label] = {key: scores[key] for key in scores if SCORES[key] in options.metrics}
        if len(options.checkpoint) > 1:
            images = results.udr_rows(len(run.data))
            groups[run.values["name"]].append(runs.encode(run.model, run.data, images))
        print(f"{run.label}: metrics.json and pictures are in {folder}")
    print_udr(groups)
    return rows


def score(
    folder: Path | None,
    facts: dict[str, Any],
    encode: Callable[[], tuple[Any, Any, Any, Any]],
    options: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """Scores of one representation; those in `folder`/metrics.json are kept where they are valid.

    The file is written after every metric, so an interrupted evaluation loses one metric at most.

    Args:
        facts: the identity of the codes (checkpoint_sha256, data) and what describes them.
        encode: gives codes, factors, their names and log-variances; called if a score is missing.
    """
    columns, facts = column_options(options), facts | {"options": changed_options(options)}
    scores = valid_scores(folder, facts, options) if folder else {}
    present = {SCORES[key] for key in scores}
    missing = [name for name in options.metrics if name not in present]
    if not missing:
        return scores
    codes, factors, names, logvar = encode()
    if options.min_kl is not None:
        codes, logvar = without_inactive(codes, logvar, options.min_kl)
    samples = as_samples(codes, factors, names, **columns)
    facts |= provenance() | {"hardware": hardware(choose_device(options.device))}
    how = {"seed": options.seed, "settings": options.settings, "logvar": logvar}
    how["scale_samples"] = options.samples == "auto"
    with runs.progress_bar(len(missing), "score", unit=" metrics", leave=False) as bar:
        for key, entry in score_all(samples, missing, **how):
            scores[key] = entry
            scores = {key: scores[key] for key in SCORES if key in scores}
            if folder:
                files.write(folder / "metrics.json", as_json(facts | {"scores": scores}))
            else:
                bar.write(f"{key}: {results.text(entry['score'], digits=4)}")
            bar.set_description(f"score {key}")
            bar.update(SCORES[key] not in present)
            present.add(SCORES[key])
    return scores


def valid_scores(
    folder: Path, facts: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Scores in `folder`/metrics.json of the same checkpoint, data and version of the metric.

    Raises:
        ValueError: scores with other settings or options would be lost.
    """
    before, valid, changes = results.read_scores(folder), {}, []
    if any(before.get(key) != facts[key] for key in ("checkpoint_sha256", "data")):
        return {}
    if before.get("options", {}) != facts["options"]:
        changes.append("other options")
    for key, entry in before["scores"].items():
        name = SCORES.get(key)
        if name is None or entry.get("version") != VERSIONS[name] or entry["score"] is None:
            continue
        valid[key] = entry
        if name in options.metrics and options.samples == "fixed":
            asked = complete_settings(name, options.settings.get(name, {})) | {"seed": options.seed}
            stored = entry.get("settings", {}) | {"seed": entry.get("seed")}
            other = [key for key in asked if asked[key] != stored.get(key)]
            changes += [f"{name}.{k}: {stored.get(k)} there, {asked[k]} here" for k in other]
    if changes and valid:
        raise ValueError(
            f"{folder / 'metrics.json'} holds scores with other settings ({changes[0]}); "
            "choose another --out"
        )
    if options.samples == "auto":  # its settings depend on the number of rows: computed again
        valid = {key: valid[key] for key in valid if SCORES[key] not in options.metrics}
    return valid


def changed_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options that change scores and are not at their defaults."""
    keys = ("min_kl", "samples", "continuous", "bins", "without")
    values = {key: getattr(options, key) for key in keys}
    return {key: value for key, value in values.items() if value not in (None, "", "fixed")}


def column_options(options: argparse.Namespace) -> dict[str, Any]:
    """How the columns of the factors are read, from the command line."""
    lists = {key: getattr(options, key).split(",") for key in ("continuous", "bins", "without")}
    columns = {key: [text for text in texts if text] for key, texts in lists.items()}
    bins = {}
    for text in columns["bins"]:
        name, _, number = text.partition("=")
        if not number.isdecimal() or int(number) < 2 or name in columns["continuous"]:
            raise ValueError(f"--bins: '{text}' is not allowed; allowed: NAME=N, N 2 or more")
        bins[name] = int(number)
    return columns | {"bins": bins}


def encoded(run: runs.Run) -> tuple[np.ndarray, Any, None, np.ndarray | None]:
    """Codes of the whole data set, its factors with their names, and log-variances."""
    codes, logvar = runs.encode(run.model, run.data, label=run.label)
    if logvar is not None and results.latent_kl(codes, logvar).sum() < COLLAPSED:
        print(f"warning: posterior collapse: {run.label} ignores its input", file=sys.stderr)
    return codes, run.data.grid, None, logvar


def without_inactive(
    codes: np.ndarray, logvar: np.ndarray | None, min_kl: float
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and log-variances (N, D) with every latent of less than `min_kl` nats set to 0.

    The decoder ignores such a latent, but its mean may still follow a factor at a small scale, and
    metrics such as MIG do not look at the scale.
    """
    if logvar is None:
        raise ValueError("--min-kl needs a posterior, but there are no log-variances")
    kl = results.latent_kl(codes, logvar)
    if not (kl >= min_kl).any():
        raise ValueError(f"--min-kl: no latent has {min_kl:g} nats; the largest has {kl.max():.3g}")
    print(f"{(kl < min_kl).sum()} of {len(kl)} latents have less than {min_kl:g} nats")
    return np.where(kl >= min_kl, codes, 0), np.where(kl >= min_kl, logvar, 0)


def output_folder(run: runs.Run, out: Path | None, several: bool) -> Path:
    """The folder for the scores and pictures of a run."""
    if out:
        return runs.folder_of(run.values, out) if several else out
    if run.path.is_dir():
        return run.path
    return run.path.parent if run.path.name == "checkpoint.pt" else EVALUATED / run.path.stem


def draw(run: runs.Run, folder: Path, scores: dict[str, Any]) -> None:
    """Write the matrices behind the scores, and the pictures of the model if they are missing."""
    pictures = {}
    for key in ("mig", "dci_disentanglement", "dci_fast_disentanglement"):
        if table := scores.get(key, {}).get("matrix"):
            values, title = np.array(table["values"]), f"{run.label}: codes and factors"
            rows = [f"z{d}" for d in range(len(values))]
            labels = {"rows": rows, "columns": table["factors"], "kind": table["kind"]}
            pictures[f"matrix_{key}.png"] = matrix(values, title=title, **labels)
    if not (folder / "fixed.png").exists():
        pictures |= runs.draw(run.model, run.data, run.label)
    for name, content in pictures.items():
        files.write(folder / name, content)


def write_codes(options: argparse.Namespace, overrides: list[str]) -> int:
    """Write codes.npz of one checkpoint: of its data set with factors, or of other pictures."""
    if len(options.checkpoint) != 1:
        raise ValueError("--write-codes needs --checkpoint with one path")
    run = runs.load(options.checkpoint[0], options.device, overrides)
    data = run.data
    if options.encode:
        data = load_dataset("npz", path=options.encode).to(choose_device(options.device))
        if data.image_shape != run.data.image_shape:
            raise ValueError(
                f"--encode: pictures are {data.image_shape}, the model takes {run.data.image_shape}"
            )
    codes, logvar = runs.encode(run.model, data, label=run.label)
    files.write(options.write_codes, pack_codes(codes, logvar, data.grid))
    print(f"{len(codes):,} codes of {codes.shape[1]} latents are in {options.write_codes}")
    return 0


def score_codes(options: argparse.Namespace) -> dict[str, Any]:
    """Score npz files of codes; UDR of several: label -> scores."""
    rows, group = {}, []
    for path in options.codes:
        content = read_codes(path)
        folder = options.out / path.stem if options.out else None
        facts = {"checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "data": None}
        rows[path.name] = score(folder, facts, lambda content=content: content, options)
        group.append((content[0], content[3]))
    print_udr({"codes": group})
    return rows


def print_udr(groups: dict[str, list[tuple[np.ndarray, np.ndarray | None]]]) -> None:
    """Print the UDR of representations (codes, log-variances) of the same images, by group."""
    for name, group in groups.items():
        if len(group) > 1:
            try:
                udr = results.udr_scores(group)
            except ValueError as reason:  # inactive codes, or files of different images
                print(f"{name}: no UDR: {reason}")
            else:
                print(f"{name}: UDR {results.text(udr.mean(), udr.std(ddof=1))}, n = {len(group)}")


def score_baselines(options: argparse.Namespace) -> dict[str, Any]:
    """Score representations that need no training, three seeds of each: label -> scores."""
    names = list(BASELINES) if options.baseline == "all" else options.baseline.split(",")
    if unknown := [name for name in names if name not in BASELINES]:
        allowed = ", ".join(["all", *BASELINES])
        raise ValueError(f"--baseline: '{unknown[0]}' is not allowed; allowed: {allowed}")
    data, rows = load_dataset("dsprites"), {}
    for name in names:
        for seed in range(BASELINE_SEEDS):
            folder = (options.out or Path("runs/baselines")) / name / f"seed{seed}"
            facts = {"checkpoint_sha256": f"baseline {name}", "data": data.fingerprint}
            options.seed = seed
            encode = partial(BASELINES[name], data, seed)
            rows[f"{name}, seed {seed}"] = score(
                folder, facts, lambda encode=encode: (encode(), data.grid, None, None), options
            )
    return rows


def as_json(value: Any) -> str:
    """JSON text; NaN is refused."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
