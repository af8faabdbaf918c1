"""Score and draw trained models: python evaluate.py --checkpoint runs/twoD/seed0

Codes of any model: python evaluate.py --codes codes.npz --metrics mig,dci
The file has codes (N, D) and, if known, factors (N, K) or sizes (K,) of a full row-major grid,
names (K,) and logvar (N, D).
Representations without training: python evaluate.py --baseline pca,ica
"""

import argparse
import functools
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import config
import files
import results
import runs
from codes import BASELINES, pack_codes, part_of, read_codes, recon
from data import load_dataset
from figures.charts import matrix
from metrics import METRICS, SCORES, VERSIONS, as_samples, complete_settings, score_all, select
from training.device import choose_device, hardware
from training.folder import provenance

DEFAULT_METRICS = "beta_vae_paper,factor_vae,mig"
DEFAULT_CONFIG = Path(__file__).resolve().parent / "config" / "metrics.yaml"
EVALUATED = Path("runs/evaluated")  # results of weights that lie outside of a run folder
OPTIONS = ("min_kl", "samples", "continuous", "bins", "without")  # these change scores
COLLAPSED = 0.05  # nats: a VAE with less KL in all latents together ignores its input
BASELINE_SEEDS = 3


@dataclass
class Source:
    """Codes to score: of a checkpoint, a file or a baseline."""

    label: str
    folder: Path | None  # of metrics.json
    facts: dict[str, Any]  # checkpoint_sha256 and data identify the codes, the rest describes them
    encode: Callable[[], tuple]  # returns codes (N, D), their factors and log-variances
    seed: int  # of the metrics' samples
    run: runs.Run | None = None
    group: str = ""  # UDR compares the sources of a group
    udr_codes: tuple[np.ndarray, np.ndarray | None] | None = None  # and their log-variances
    nuisance: tuple[str, ...] = ()  # factors that the data set does not score
    file: str = "metrics.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Metrics: all, {', '.join(METRICS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, what = parser.add_argument, parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", nargs="+", metavar="PATH", help="run folders or weights")
    what.add_argument("--codes", nargs="+", metavar="NPZ", help="files of codes")
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
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("overrides", nargs="*", metavar="key=value", help="mig.num_bins=10 dataset.path=...")
    options = parser.parse_intermixed_args(arguments)
    return runs.exit_code("evaluate.py", lambda: evaluate(options))


def evaluate(options: argparse.Namespace) -> int:
    """Score and draw what the command line names; print a table."""
    # The lists of paths also take the overrides that follow them.
    words = options.checkpoint or options.codes or []
    overrides = [word for word in words if re.match(r"[a-z_]+\.[a-z_]+=", word)]
    overrides = [word for word in overrides if not Path(word).exists()]
    paths = [Path(word) for word in words if word not in overrides]
    overrides += options.overrides
    of_data = [text for text in overrides if text.startswith("dataset.")]

    if options.seed < 0:
        raise ValueError(f"--seed: {options.seed} is not allowed; allowed: 0 or more")
    names = select(items(options.metrics))
    values = config.read_yaml(options.config)
    values = config.apply_overrides(values, [text for text in overrides if text not in of_data])
    values = config.validate(config.sections_schema("Metrics", METRICS), values, complete=False)
    settings = {name: section for name, section in values.items() if section}
    if options.write_codes or options.encode:
        return write_codes(paths, of_data, options)
    if options.codes:
        sources = code_files(paths, options)
    elif options.baseline:
        sources = baselines(options)
    else:
        sources = checkpoints(paths, of_data, options)

    rows, groups = {}, defaultdict(list)
    for source in sources:
        scores = score(source, names, settings, options)
        label = source.label + f" in {source.folder}" * (source.label in rows)
        rows[label] = {key: scores[key] for key in scores if SCORES[key] in names}
        if source.run:
            draw(source.run, source.folder, scores)
            print(f"{source.label}: metrics.json and pictures are in {source.folder}")
        if source.facts.get("recon") is not None:
            print(f"{source.label}: recon {source.facts['recon']:.1f} nats")
        if source.udr_codes:
            groups[source.group].append(source.udr_codes)
    for group, codes in groups.items():
        if len(codes) > 1:
            print(f"{group}: {udr_text(codes)}")
    print(results.score_table(rows))
    has_score = any(entry["score"] is not None for row in rows.values() for entry in row.values())
    return 0 if has_score else 1


def checkpoints(
    paths: list[Path], overrides: list[str], options: argparse.Namespace
) -> Iterator[Source]:
    """Run folders and files of weights, one after the other."""
    paths = [path.parent if path.name == "checkpoint.pt" else path for path in paths]
    folders = [path if path.is_dir() else EVALUATED / path.stem for path in paths]
    if options.out:
        names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]  # name/seed0
        folders = [options.out / name for name in names] if len(paths) > 1 else [options.out]
    if len(set(folders)) < len(folders):
        raise ValueError("--checkpoint: the results of two paths would be in one folder")
    for path, folder in zip(paths, folders, strict=True):
        run = runs.load(path, options.device, overrides)
        facts = {"checkpoint_sha256": run.sha256, "data": run.data.fingerprint}
        facts |= {"step": run.step, "images_seen": run.images_seen}
        facts |= {"precision": str(run.model.dtype).removeprefix("torch.")}
        encode = functools.cache(partial(encoded, run))  # once for all images and their parts
        source = Source(run.label, folder, facts, encode, options.seed, run)
        source.nuisance = run.data.nuisance
        if len(paths) > 1:
            images = results.shared_rows(len(run.data))
            source.udr_codes = runs.encode(run.model, run.data, images)
            source.group = run.values["name"]
        yield source
        for part, rows in run.data.parts.items():
            label, of_part = f"{run.label}, {part}", facts | {"recon": recon(run, rows)}
            source = Source(label, folder, of_part, partial(part_of, encode, rows), options.seed)
            source.nuisance, source.file = run.data.nuisance, f"metrics_{part}.json"
            yield source


def code_files(paths: list[Path], options: argparse.Namespace) -> Iterator[Source]:
    """Files of codes, one after the other."""
    if options.out and len({path.stem for path in paths}) < len(paths):
        raise ValueError("--codes: the results of two files would be in one folder")
    for path in paths:
        codes, _, logvar = read_codes(path)
        folder = options.out / path.stem if options.out else None
        facts = {"checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "data": None}
        source = Source(path.name, folder, facts, partial(read_codes, path), options.seed)
        source.group, source.udr_codes = "codes", (codes, logvar)
        yield source


def baselines(options: argparse.Namespace) -> Iterator[Source]:
    """Representations that need no training, three seeds of each."""
    names = list(BASELINES) if options.baseline == "all" else items(options.baseline)
    if unknown := [name for name in names if name not in BASELINES]:
        allowed = ", ".join(["all", *BASELINES])
        raise ValueError(f"--baseline: '{unknown[0]}' is not allowed; allowed: {allowed}")
    data = load_dataset("dsprites")

    def encode(name: str, seed: int) -> tuple:
        return BASELINES[name](data, seed), data.grid, None

    for name in names:
        for seed in range(BASELINE_SEEDS):
            folder = (options.out or Path("runs/baselines")) / name / f"seed{seed}"
            facts = {"checkpoint_sha256": f"baseline {name}", "data": data.fingerprint}
            yield Source(f"{name}, seed {seed}", folder, facts, partial(encode, name, seed), seed)


def score(
    source: Source, names: list[str], settings: dict[str, Any], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Scores of a source by key; those in its metrics.json are kept where they are valid.

    The file is written after every score, so an interrupted evaluation loses one metric at most.
    """
    chosen = {key: getattr(options, key) for key in OPTIONS}
    chosen = {key: value for key, value in chosen.items() if value not in (None, "", "fixed")}
    facts, columns = source.facts | {"options": chosen}, column_options(options)
    scores = valid_scores(source, names, settings, facts) if source.folder else {}
    missing = [key for key, name in SCORES.items() if name in names and key not in scores]
    if not missing:
        return scores
    codes, factors, logvar = source.encode()
    columns["without"] += source.nuisance
    if options.min_kl is not None:
        codes, logvar = without_inactive(codes, logvar, options.min_kl)
    samples = as_samples(codes, factors, logvar=logvar, **columns)
    how = {"seed": source.seed, "settings": settings, "scale_samples": options.samples == "auto"}
    facts |= provenance() | {"hardware": hardware(choose_device(options.device))}
    with runs.progress_bar(len(missing), "score", unit=" scores", leave=False) as bar:
        for key, entry in score_all(samples, missing, **how):
            scores[key] = entry
            content = facts | {"scores": {key: scores[key] for key in SCORES if key in scores}}
            if source.folder:
                text = json.dumps(content, indent=1, allow_nan=False) + "\n"
                files.write(source.folder / source.file, text)
            else:
                bar.write(f"{key}: {results.text(entry['score'], digits=4)}")
            bar.set_description(f"score {key}")
            bar.update()
    return content["scores"]


def valid_scores(
    source: Source, names: list[str], settings: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    """Valid scores in metrics.json; ValueError if scores with other settings would be lost."""
    before, valid, changes = results.read_scores(source.folder, source.file), {}, []
    if any(before.get(key) != facts[key] for key in ("checkpoint_sha256", "data")):
        return {}
    if before.get("options", {}) != facts["options"]:
        changes.append("other options")
    is_scaled = facts["options"].get("samples") == "auto"  # computed again: rows decide on settings
    for key, name in SCORES.items():
        entry = before["scores"].get(key, {})
        if entry.get("score") is None or entry.get("version") != VERSIONS[name]:
            continue
        valid[key] = entry
        if name in names and not is_scaled:
            asked = complete_settings(name, settings.get(name, {})) | {"seed": source.seed}
            stored = entry.get("settings", {}) | {"seed": entry.get("seed")}
            other = [key for key in asked if asked[key] != stored.get(key)]
            changes += [f"{name}.{k}: {stored.get(k)} there, {asked[k]} here" for k in other]
    if changes and valid:
        raise ValueError(
            f"{source.folder / source.file} holds scores with other settings ({changes[0]}); "
            "choose another --out"
        )
    return {key: valid[key] for key in valid if not (is_scaled and SCORES[key] in names)}


def column_options(options: argparse.Namespace) -> dict[str, Any]:
    """How `as_samples` reads the columns of the factors."""
    bins = {}
    for text in items(options.bins):
        name, _, number = text.partition("=")
        if not number.isdecimal() or int(number) < 2:
            raise ValueError(f"--bins: '{text}' is not allowed; allowed: NAME=N, N 2 or more")
        bins[name] = int(number)
    continuous, without = items(options.continuous), items(options.without)
    return {"continuous": continuous, "bins": bins, "without": without}


def items(text: str) -> list[str]:
    """The parts of a list that was typed with commas."""
    return [item for item in text.split(",") if item]


def encoded(run: runs.Run) -> tuple[np.ndarray, Any, np.ndarray | None]:
    """Codes of the whole data set, its factors and log-variances."""
    codes, logvar = runs.encode(run.model, run.data, label=run.label)
    if logvar is not None and results.latent_kl(codes, logvar).sum() < COLLAPSED:
        print(f"warning: posterior collapse: {run.label} ignores its input", file=sys.stderr)
    return codes, run.data.grid, logvar


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
    print(f"{(kl < min_kl).sum()} of {len(kl)} latents have less than {min_kl:g} nats")
    active = kl >= min_kl
    return np.where(active, codes, 0), np.where(active[: logvar.shape[1]], logvar, 0)


def draw(run: runs.Run, folder: Path, scores: dict[str, Any]) -> None:
    """Write the matrices behind the scores, and the pictures of the model if they are missing."""
    pictures = {}
    for key in ("mig", "dci_disentanglement", "dci_fast_disentanglement"):
        if table := scores.get(key, {}).get("matrix"):
            values, title = np.array(table["values"]), f"{run.label}: codes and factors"
            factors = [runs.PLAIN_NAMES.get(name, name) for name in table["factors"]]
            picture = matrix(values, factors, title=title, kind=table["kind"])
            pictures[f"matrix_{key}.png"] = picture
    if not (folder / "fixed.png").exists():
        pictures |= runs.draw(run.model, run.data, run.label)
    for name, content in pictures.items():
        files.write(folder / name, content)


def udr_text(group: list[tuple[np.ndarray, np.ndarray | None]]) -> str:
    """UDR of several codes (n, D) of the same images with their log-variances."""
    try:
        udr = results.agreement("udr", group)
    except ValueError as reason:  # inactive codes, or files of different images
        return f"no UDR: {reason}"
    return f"UDR {results.text(udr.mean(), udr.std(ddof=1))}, n = {len(group)}"


def write_codes(paths: list[Path], overrides: list[str], options: argparse.Namespace) -> int:
    """Write codes.npz of one checkpoint: of its data set with factors, or of other pictures."""
    if not (options.checkpoint and options.write_codes) or len(paths) != 1:
        raise ValueError("codes need --checkpoint with one path, and --write-codes")
    run = runs.load(paths[0], options.device, overrides)
    data = run.data
    if options.encode:
        data = load_dataset("npz", path=options.encode).to(choose_device(options.device))
        if data.image_shape != run.data.image_shape:
            raise ValueError(f"--encode: images are {data.image_shape}, not {run.data.image_shape}")
    codes, logvar = runs.encode(run.model, data, label=run.label)
    files.write(options.write_codes, pack_codes(codes, logvar, data.grid))
    print(f"{len(codes):,} codes of {codes.shape[1]} latents are in {options.write_codes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
