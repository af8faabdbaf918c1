"""Scores and pictures of trained models: python evaluate.py --checkpoint runs/twoD/seed0

Or scores of any model in the world: python evaluate.py --codes codes.npz --metrics mig,dci
"""

import argparse
import json
import sys
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import config
from data import ImageData, load_dataset
from figures.charts import best_factors, matrix
from figures.run import draw_run
from metrics import METRICS, as_samples, dci, dci_fast, score_all, select, udr
from models import build_model
from models.fast import keep_freed_memory
from training import (
    choose_device,
    choose_precision,
    hardware,
    load_checkpoint,
    provenance,
    restore,
)
from training.checkpoint import write_atomically

DEFAULT_METRICS = "beta_vae_paper,factor_vae,mig"
DEFAULT_CONFIG = Path(__file__).resolve().parent / "config" / "metrics.yaml"
ENCODE_BATCH = 1024
PICTURE_IMAGES = 2048  # on which the information of a latent is measured


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Metrics: all, dci, dci_fast, {', '.join(METRICS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--checkpoint", nargs="+", type=Path, metavar="PATH", help="checkpoints or run folders"
    )
    what.add_argument(
        "--codes",
        type=Path,
        metavar="NPZ",
        help="codes (N, D), with factors (N, K) or sizes (K,) of a full row-major grid; "
        "optional: names (K,), logvar (N, D)",
    )
    parser.add_argument("--metrics", default=DEFAULT_METRICS, help=f"default: {DEFAULT_METRICS}")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="metrics' settings")
    parser.add_argument("--seed", type=int, default=0, help="of the metrics' sampling")
    parser.add_argument("--repeats", type=int, default=1, help="draws a metric, for mean, spread")
    parser.add_argument("--out", type=Path, help="folder for metrics.json and pictures")
    parser.add_argument("--json", type=Path, help="write the scores to this file too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("overrides", nargs="*", metavar="metric.key=value", help="mig.num_bins=10")
    options = parser.parse_args(arguments)
    # a list of paths swallows the overrides behind it
    given = options.checkpoint or []
    paths = [path for path in given if "=" not in str(path) or path.exists()]
    options.overrides += [str(path) for path in given if path not in paths]
    try:
        if options.checkpoint and not paths:
            raise ValueError("--checkpoint: no path was given")
        for folder in filter(None, (options.out, options.json and options.json.parent)):
            folder.mkdir(parents=True, exist_ok=True)  # a bad one fails now, not after the work
        settings = metric_settings(options.config, options.overrides)
        if options.seed < 0:
            raise ValueError(f"--seed: {options.seed} is not allowed; allowed: 0 or more")
        score = {
            "metrics": select(options.metrics.split(",")),
            "seed": options.seed,
            "repeats": options.repeats,
            "settings": settings,
        }
        if options.codes:
            scores = score_arrays(options.codes, score)
            print(table({options.codes.name: scores}))
            result = scores
        else:
            result = score_checkpoints(paths, options.out, options.device, score)
        if options.codes and options.out:
            _write_json(options.out / "metrics.json", result)
        if options.json:
            _write_json(options.json, result)
    except (ValueError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: stopped", file=sys.stderr)
        return 130
    return 0


def metric_settings(path: Path, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Metric -> settings that differ from its defaults. Raises config.ConfigError."""
    values = config.apply_overrides(config.read_yaml(path), overrides)
    functions = {k: f for k, f in METRICS.items() if not k.startswith("dci_")}
    functions |= {"dci": dci, "dci_fast": dci_fast}
    schema = config.sections_schema("Metrics", functions)
    given = config.validate(schema, values, complete=False)
    return {key: settings for key, settings in given.items() if settings}


def score_arrays(path: Path, score: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores of the codes in an npz file. Raises ValueError where it does not hold what it must."""
    if not path.is_file():
        raise ValueError(f"--codes: there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"--codes: {path} is not an npz file of plain arrays")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"--codes: {path} is not an npz file of plain arrays") from error
    if "codes" not in arrays or not {"factors", "sizes"} & set(arrays):
        found = ", ".join(arrays) or "nothing"
        raise ValueError(
            f"--codes: {path} must hold 'codes' and 'factors' or 'sizes'; it has {found}"
        )
    factors = arrays.get("factors")
    if factors is None:
        sizes = tuple(int(size) for size in np.atleast_1d(arrays["sizes"]))
        if np.prod(sizes) != len(arrays["codes"]):
            raise ValueError(
                f"--codes: sizes {sizes} make {np.prod(sizes)} combinations, "
                f"but codes has {len(arrays['codes'])} rows"
            )
        factors = np.stack(np.unravel_index(np.arange(len(arrays["codes"])), sizes), axis=1)
    names = [str(name) for name in arrays["names"]] if "names" in arrays else None
    return _score(arrays["codes"], factors, arrays.get("logvar"), score, names)


def score_checkpoints(
    paths: list[Path], out: Path | None, device: str, score: dict[str, Any]
) -> dict[str, Any]:
    """Encode, score and draw every checkpoint; one table; the JSON of all."""
    keep_freed_memory()
    device, loaded, results, all_codes = choose_device(device), {}, {}, defaultdict(list)
    seen: dict[str, Path] = {}
    groups: dict[str, dict[str, Any]] = {}
    for path in paths:
        state = load_checkpoint(path)
        values = state["config"]
        key = json.dumps(values["dataset"], sort_keys=True)
        if key not in loaded:
            loaded = {key: load_dataset(**values["dataset"]).to(device)}
        data = loaded[key]
        model = model_of(state, path, device)
        label = f"{values['name']} seed {values['seed']}"
        if state["step"] < values["train"]["steps"]:
            label += f" (step {state['step']:,} of {values['train']['steps']:,})"
        run = json.dumps(values, sort_keys=True)
        if run in seen:
            raise ValueError(f"{path} is the same run as {seen[run]}: give it once")
        seen[run] = path
        if data.grid is None:
            folder = _folder(path, out, values, several=len(paths) > 1)
            draw(model, data, folder, {}, label)
            print(f"{label}: '{data.name}' has no factors to score; pictures are in {folder}")
            continue
        codes, logvar = encode(model, data, label)
        scores = _score(codes, data.grid, logvar, score)
        images_seen = state["step"] * values["train"]["batch_size"]
        results[str(path)] = {"name": values["name"], "seed": values["seed"]}
        results[str(path)] |= {"images_seen": images_seen, "scores": scores}
        all_codes[values["name"]].append(codes)
        shared = {key: value for key, value in values.items() if key != "seed"}
        if groups.setdefault(values["name"], shared) != shared:
            raise ValueError(f"{path}: runs named '{values['name']}' differ in more than the seed")
        folder = _folder(path, out, values, several=len(paths) > 1)
        draw(model, data, folder, scores, label)
        _write_json(folder / "metrics.json", scores)
        facts = {"checkpoint": str(path), "step": state["step"], "images_seen": images_seen}
        facts |= {"precision": str(model.dtype).removeprefix("torch."), "seed": score["seed"]}
        facts |= provenance() | {"hardware": hardware(device)}
        _write_json(folder / "evaluation.json", facts)
        print(f"{label}: metrics.json and pictures are in {folder}")
    if not results:
        return {}
    print(table({_label(path, r): r["scores"] for path, r in results.items()}))
    if len(results) == 1:
        return next(iter(results.values()))["scores"]
    summary = summarise(results, all_codes, score["seed"])
    print(summary_table(summary))
    report = {"summary": summary, "runs": results}
    if out:
        _write_json(out / "metrics.json", report)
    return report


def model_of(state: dict[str, Any], path: Path, device: torch.device) -> nn.Module:
    """The model of a checkpoint, in eval mode."""
    values = state["config"]
    model = build_model(tuple(state["image_shape"]), values["model"], values["objective"])
    restore(model, state, path, optimizers=False)
    model = model.to(device, memory_format=torch.channels_last).eval()
    model.dtype = choose_precision(values["train"]["precision"], device)
    return model


@torch.inference_mode()
def encode(model: nn.Module, data: ImageData, label: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes (N, D) of all images, and their log-variances where the model has a posterior."""
    codes, logvars, has_posterior = [], [], hasattr(model, "posterior")
    with tqdm(total=len(data), desc=f"encode {label}", unit=" images", unit_scale=True) as bar:
        for index in torch.arange(len(data)).split(ENCODE_BATCH):
            x = data.batch(index, model.dtype)
            mu, logvar = model.posterior(x) if has_posterior else (model.encode(x), None)
            codes.append(mu.float().cpu())
            if has_posterior:
                logvars.append(logvar.float().cpu())
            bar.update(len(index))
    return torch.cat(codes).numpy(), torch.cat(logvars).numpy() if has_posterior else None


def draw(
    model: nn.Module, data: ImageData, folder: Path, scores: dict[str, Any], title: str
) -> None:
    """The pictures of a run, rows named after factors, and the matrices behind the scores."""
    names = None
    for key, entry in scores.items():
        found = entry.get("matrix")
        if not found or key not in ("mig", "dci_disentanglement", "dci_fast_disentanglement"):
            continue
        values = np.array(found["values"])
        labels = [f"z{i}" for i in range(len(values))]
        matrix(
            values,
            folder / f"matrix_{key}.png",
            rows=labels,
            columns=found["factors"],
            title=f"{title}: codes and factors",
            kind=found["kind"],
        )
        names = names or best_factors(values, found["factors"])
    images = data.batch(data.random_index(PICTURE_IMAGES, seed=0))
    draw_run(model, folder, data.reference_images(), images, title=title, factor_names=names)


def _score(codes, factors, logvar, score, names=None) -> dict[str, dict[str, Any]]:
    if names is not None:
        codes, factors = as_samples(codes, factors, names), None
    with tqdm(total=len(score["metrics"]), desc="score", unit=" metrics", leave=False) as bar:

        def progress(name: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(f"score {name}")

        return score_all(codes, factors, logvar=logvar, progress=progress, **score)


def _folder(path: Path, out: Path | None, values: dict[str, Any], several: bool) -> Path:
    if out:
        folder = out / f"{values['name']}_seed{values['seed']}" if several else out
    elif path.is_dir():
        folder = path
    elif path.name == "checkpoint.pt":
        folder = path.parent
    else:
        folder = Path("runs") / "evaluated" / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _label(path: str, result: dict[str, Any]) -> str:
    return f"{result['name']} seed {result['seed']}"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Scores as text: a line a metric, a column a model, so that any number of metrics fits."""
    keys = list(dict.fromkeys(key for scores in rows.values() for key in scores))
    width, columns = max(map(len, keys)), {name: max(len(name), 8) for name in rows}
    lines = [" " * width + "".join(f"  {name:>{w}}" for name, w in columns.items())]
    for key in keys:
        cells = []
        for name, w in columns.items():
            value = rows[name].get(key, {}).get("score")
            cells.append(f"  {'-' if value is None else format(value, '.4f'):>{w}}")
        lines.append(f"{key:<{width}}" + "".join(cells))
    reasons = {k: s[k]["reason"] for s in rows.values() for k in s if s[k].get("reason")}
    lines += [f"{key}: {reason}" for key, reason in reasons.items()]
    return "\n".join(lines)


def summarise(
    results: dict[str, Any], codes: dict[str, list[np.ndarray]], seed: int
) -> dict[str, Any]:
    """Configuration -> metric -> mean, standard deviation (ddof 1), n over its runs; with UDR."""
    groups = defaultdict(list)
    for result in results.values():
        groups[result["name"]].append(result["scores"])
    summary = {}
    for name, runs in groups.items():
        summary[name] = {}
        for key in runs[0]:
            values = [run[key]["score"] for run in runs if run[key]["score"] is not None]
            if values:
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
                mean = float(np.mean(values))
                summary[name][key] = {"mean": mean, "spread": spread, "n": len(values)}
        if len(codes[name]) > 1:
            summary[name]["udr"] = _agreement(codes[name], seed)
    return summary


def _agreement(runs: list[np.ndarray], seed: int) -> dict[str, Any]:
    """UDR of the runs of one configuration: the mean, and the score of every run."""
    samples = min(10_000, len(runs[0]))
    try:
        result = udr(runs, np.random.default_rng(seed), num_samples=samples)
    except ValueError as error:
        return {"mean": None, "reason": str(error), "n": len(runs)}
    scores = result.settings["scores"]
    return {"mean": result.score, "spread": float(np.std(scores, ddof=1)), "n": len(runs)} | {
        "scores": scores
    }


def summary_table(summary: dict[str, Any]) -> str:
    """Mean +- standard deviation (n) of every metric by configuration."""
    lines = []
    for name, scores in summary.items():
        for key, s in scores.items():
            if s["mean"] is None:
                lines.append(f"{name}  {key}: - ({s['reason']})")
                continue
            spread = "" if s["spread"] is None else f" +- {s['spread']:.4f}"
            lines.append(f"{name}  {key}: {s['mean']:.4f}{spread} (n = {s['n']})")
    return "\n".join(lines)


def _write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    write_atomically(path, lambda file: file.write_text(text))


if __name__ == "__main__":
    sys.exit(main())
