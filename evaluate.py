"""Scores and pictures of trained models: python evaluate.py --checkpoint runs/twoD/seed0

Or scores of any model in the world: python evaluate.py --codes codes.npz --metrics mig,dci
"""

import argparse
import hashlib
import inspect
import json
import math
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import config
from data import DATASETS, NPZ_ERRORS, ImageData, load_dataset
from figures.charts import best_factors, matrix
from figures.run import draw_run
from metrics import (
    JOINT,
    METRICS,
    PARTS,
    as_codes,
    as_logvar,
    as_samples,
    code_of,
    score_all,
    select,
    udr,
)
from metrics.samples import Samples
from metrics.study import directed
from models import MODELS, build_model
from models.fast import keep_freed_memory
from models.objectives import OBJECTIVES
from models.vae import gaussian_kl
from training import (
    choose_device,
    choose_precision,
    hardware,
    load_hashed,
    provenance,
    restore,
)
from training.checkpoint import checkpoint_file, write_atomically

Codes = tuple[np.ndarray, np.ndarray | None]  # (n, D) and their log-variances, of a posterior

SCHEMA = config.make_schema(DATASETS, MODELS, OBJECTIVES)
DEFAULT_METRICS = "beta_vae_paper,factor_vae,mig"
DEFAULT_CONFIG = Path(__file__).resolve().parent / "config" / "metrics.yaml"
STALE = {  # facts of an evaluation -> what its scores are of where one of them has changed
    "checkpoint_sha256": "other weights",
    "data_blake2b": "other data",
}
EVALUATED = Path("runs") / "evaluated"  # pictures and scores of checkpoints without a folder
ENCODE_BATCH = 1024
PICTURE_IMAGES = 2048  # on which the information of a latent is measured
AGREEMENT_IMAGES = 10_000  # on which runs are compared for UDR
CODES_KEYS = ("codes", "factors", "sizes", "names", "logvar")  # of the file of --codes


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
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="draws a metric, for mean and spread (0 where a draw takes all samples)",
    )
    parser.add_argument(
        "--min-kl",
        type=float,
        metavar="NATS",
        help="latents whose KL to the prior is below it count as constant (needs a posterior; UDR "
        "has a limit of its own); default: all count, as in the published protocols",
    )
    parser.add_argument("--out", type=Path, help="folder for metrics.json and pictures")
    parser.add_argument("--json", type=Path, help="write the scores to this file too")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("overrides", nargs="*", metavar="metric.key=value", help="mig.num_bins=10")
    options = parser.parse_intermixed_args(arguments)
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
        if options.repeats < 1:
            raise ValueError(f"--repeats: {options.repeats} is not allowed; allowed: 1 or more")
        if options.min_kl is not None and not options.min_kl > 0:
            raise ValueError(f"--min-kl: {options.min_kl} is not allowed; allowed: more than 0")
        several = options.codes or len(paths) > 1
        if several and options.out and (options.out / "evaluation.json").exists():
            raise ValueError(f"--out: {options.out} has the scores of a run: give another folder")
        if not several and options.out and _is_of_several(options.out):
            raise ValueError(f"--out: {options.out} has scores of other kind: give another folder")
        if options.min_kl is not None and options.checkpoint and not options.out:
            raise ValueError("--min-kl: a folder of its own is needed for these scores (--out)")
        if options.json and options.json.exists() and not options.json.is_file():
            raise ValueError(f"--json: {options.json} is not a file to write")
        score = {
            "metrics": select(options.metrics.split(",")),
            "seed": options.seed,
            "repeats": options.repeats,
            "settings": settings,
            "min_kl": options.min_kl,
        }
        if options.codes:
            result = score_arrays(options.codes, score)
            print(table({options.codes.name: result}))
        else:
            result = score_checkpoints(paths, options.out, options.device, score)
        if options.codes and options.out:
            write_json(options.out / "metrics.json", result)
            draw_matrices(result, options.out, options.codes.name)
        if options.json and result:
            write_json(options.json, result)
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
    functions = {key: f for key, f in METRICS.items() if key not in PARTS} | JOINT
    schema = config.sections_schema("Metrics", functions, without=("logvar",))
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
            there = file.files
            arrays = {key: file[key] for key in CODES_KEYS if key in there}
    except NPZ_ERRORS as error:
        raise ValueError(f"--codes: {path} is not an npz file of plain arrays") from error
    if "codes" not in arrays or ("factors" in arrays) == ("sizes" in arrays):
        found = ", ".join(there) or "nothing"
        raise ValueError(
            f"--codes: {path} must hold 'codes' and either 'factors' or 'sizes'; it has {found}"
        )
    codes, names, logvar = as_codes(arrays["codes"]), arrays.get("names"), arrays.get("logvar")
    factors = arrays["factors"] if "factors" in arrays else _grid(arrays["sizes"], len(codes))
    if names is not None:
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise ValueError(f"--codes: names has shape {names.shape}; a text a factor is allowed")
        names = names.astype(str).tolist()
    if logvar is not None:  # named now, not after the first metrics
        logvar = as_logvar(logvar, codes)
    elif score["min_kl"] is not None:
        raise ValueError(f"--min-kl needs a posterior: {path} has no 'logvar'")
    return _score(codes, factors, logvar, score, names)


def _grid(sizes: np.ndarray, rows: int) -> np.ndarray:
    """Factors (rows, K) of a full row-major grid of these sizes."""
    if sizes.ndim > 1 or sizes.dtype.kind not in "iu" or sizes.size == 0 or sizes.min() < 1:
        raise ValueError(f"--codes: sizes {sizes.tolist()} is not a list of integers from 1 on")
    sizes = tuple(int(size) for size in np.atleast_1d(sizes))
    if math.prod(sizes) != rows:
        raise ValueError(
            f"--codes: sizes {sizes} make {math.prod(sizes)} combinations, "
            f"but codes has {rows} rows"
        )
    return np.stack(np.unravel_index(np.arange(rows), sizes), axis=1)


class Run(NamedTuple):
    """A trained model with what it was trained on; path is its checkpoint or its folder."""

    path: Path
    values: dict[str, Any]  # the configuration
    step: int
    model: nn.Module
    data: ImageData
    sha256: str  # of the checkpoint that the model is of

    @property
    def label(self) -> str:
        """What pictures and tables call it."""
        steps, label = self.values["train"]["steps"], _label(self.values)
        return label + (f" (step {self.step:,} of {steps:,})" if self.step < steps else "")

    @property
    def images_seen(self) -> int:
        """Images in all batches so far."""
        return self.step * self.values["train"]["batch_size"]


def load_runs(paths: Iterable[Path], device: str) -> Iterator[Run]:
    """Read checkpoints one after the other; each data set is loaded once.

    Raises ValueError for a run that is given twice, and for two runs of one name that differ in
    more than the seed.
    """
    keep_freed_memory()
    device, loaded, seen, groups = choose_device(device), {}, {}, {}
    given: set[Path] = set()
    for path in (paths := list(paths)):  # now, not after the others' scores
        if (file := checkpoint_file(path).resolve()) in given:
            raise ValueError(f"{path} is given twice")
        given.add(file)
    for path in paths:
        state, digest = load_hashed(path)
        with config.named(path):
            values = config.validate(SCHEMA, state["config"])  # with keys younger than the run
        run = json.dumps(values, sort_keys=True)
        if run in seen:
            raise ValueError(f"{path} is the same run as {seen[run]}: give it once")
        seen[run] = path
        shared = {key: value for key, value in values.items() if key != "seed"}
        if groups.setdefault(values["name"], shared) != shared:
            raise ValueError(f"{path}: runs named '{values['name']}' differ in more than the seed")
        key = json.dumps(values["dataset"], sort_keys=True)
        if key not in loaded:
            loaded = {key: load_dataset(**values["dataset"]).to(device)}
        if tuple(state["image_shape"]) != loaded[key].image_shape:
            raise ValueError(
                f"{path} was trained on images of {list(state['image_shape'])}, but the data set "
                f"now has images of {list(loaded[key].image_shape)}"
            )
        model = model_of(state, path, device)
        yield Run(path, values, state["step"], model, loaded[key], digest)


def score_checkpoints(
    paths: list[Path], out: Path | None, device: str, score: dict[str, Any]
) -> dict[str, Any]:
    """Encode, score and draw every checkpoint; one table; the JSON of all."""
    files = [path for path in paths if path.is_file() and path.name != "checkpoint.pt"]
    for a, b in combinations([] if out else files, 2):
        if a.stem == b.stem:
            raise ValueError(f"{a} and {b} would share {EVALUATED / a.stem}: give a folder (--out)")
    results, samples = {}, defaultdict(list)
    for run in load_runs(paths, device):
        folder = folder_of(run, out, several=len(paths) > 1)
        scores = score_run(run, folder, score)
        if not scores:
            continue
        name, seed = run.values["name"], run.values["seed"]
        facts = {"name": name, "seed": seed, "images_seen": run.images_seen}
        results[str(run.path)] = facts | {"scores": scores}
        if len(paths) > 1:
            samples[name].append(agreement_codes(run, score["seed"]))
    if not results:
        return {}
    print(table({_label(r): r["scores"] for r in results.values()}))
    if len(results) == 1:
        return next(iter(results.values()))["scores"]
    summary = summarise(results, samples, score["seed"])
    print(summary_table(summary))
    report = {"summary": summary, "runs": results}
    if out:
        write_json(out / "metrics.json", report)
    return report


def score_run(
    run: Run, folder: Path, score: dict[str, Any], scored: bool = False
) -> dict[str, dict[str, Any]]:
    """Encode, score and draw a run into a folder: metrics.json, evaluation.json, pictures.

    Scores that are there already, of the same question, are kept beside the new ones; where none
    lacks, nothing is done. Returns those that were asked for ({} of a data set without factors);
    scored: those that are there, and nothing is done.
    """
    if run.data.grid is None:
        draw(run.model, run.data, folder, {}, run.label)
        text = f"'{run.data.name}' has no factors to score; pictures are in {folder}"
        print(f"{run.label}: {text}")
        return {}
    question = asked(run, score)
    known = _kept(folder, question)
    missing = [key for key in score["metrics"] if key not in known]
    if scored:
        return {key: known[key] for key in score["metrics"] if key in known}
    if not missing:
        print(f"{run.label}: scored before; without {folder / 'metrics.json'} it is scored again")
        return {key: known[key] for key in score["metrics"]}
    codes, logvar = encode(run.model, run.data, run.label)
    known |= _score(codes, run.data.grid, logvar, score | {"metrics": missing})
    scores = {key: known[key] for key in METRICS if key in known}
    draw(run.model, run.data, folder, scores, run.label)
    facts = {"checkpoint": str(run.path), "step": run.step, "images_seen": run.images_seen}
    facts |= {"precision": str(run.model.dtype).removeprefix("torch."), **question}
    facts |= {"metrics_sha256": {key: code_of(key) for key in scores}} | provenance()
    facts |= {"hardware": hardware(next(run.model.parameters()).device)}
    written = write_json(folder / "metrics.json", scores)
    write_json(folder / "evaluation.json", facts | {"scores_sha256": _sha256(written)})
    print(f"{run.label}: metrics.json and pictures are in {folder}")
    return {key: scores[key] for key in score["metrics"]}


def asked(run: Run, score: dict[str, Any]) -> dict[str, Any]:
    """What scores answer, beside their metrics: the weights, the data, settings and draws.

    Not the code of each metric, the precision and the processor, which are noted beside them.
    """
    facts = {"checkpoint_sha256": run.sha256, "data_blake2b": run.data.fingerprint}
    facts |= {key: score.get(key) for key in ("seed", "repeats", "settings", "min_kl")}
    return json.loads(json.dumps(facts))  # as it is read from a file: with lists for tuples


def _kept(folder: Path, question: dict[str, Any]) -> dict[str, Any]:
    """All scores that `score_run` has left in a folder but those of another model or code.

    Raises ValueError where they are of the same model by other settings: they would be lost.
    """
    path = folder / "metrics.json"
    try:
        facts, text = json.loads((folder / "evaluation.json").read_text()), path.read_bytes()
        scores = json.loads(text)
    except (FileNotFoundError, ValueError):  # never scored, or by hand
        return {}
    facts = facts if isinstance(facts, dict) else {}
    if facts.get("scores_sha256") != _sha256(text):  # not the scores that the facts are of
        return {}
    differ = [key for key, value in question.items() if facts.get(key) != value]
    stale = [f"of {what}" for key, what in STALE.items() if key in differ]
    if differ and not stale:
        key = differ[0]
        raise ValueError(
            f"{path} has scores with {key} {facts.get(key)}, these are with {question[key]}: ask "
            "with the same, have evaluate.py write to another folder (--out), or remove that file"
        )
    code = facts.get("metrics_sha256")
    if not stale and isinstance(code, dict):
        now = {key: code_of(key) for key in METRICS}
        known = {key: entry for key, entry in scores.items() if code.get(key) == now.get(key, "")}
    else:
        known = {}
    if dropped := [key for key in scores if key not in known]:
        why = (stale or ["by another version of the metric"])[0]
        print(f"{path}: scores {why} are dropped: {', '.join(dropped)}")
    return known


def _is_of_several(folder: Path) -> bool:
    """Whether the scores in a folder are of several runs or of codes, not of a run's own."""
    return (folder / "metrics.json").exists() and not (folder / "evaluation.json").exists()


def _sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def model_of(state: dict[str, Any], path: Path, device: torch.device) -> nn.Module:
    """The model of a checkpoint, in eval mode."""
    values = state["config"]
    model = build_model(tuple(state["image_shape"]), values["model"], values["objective"])
    restore(model, state, path, optimizers=False)
    model = model.to(device, memory_format=torch.channels_last).eval()
    model.dtype = choose_precision(values["train"]["precision"], device)
    return model


@torch.inference_mode()
def encode(
    model: nn.Module, data: ImageData, label: str, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes (N, D) of all images or of these rows (N,), and their log-variances.

    The latter are None where the model has no posterior.
    """
    codes, logvars, has_posterior = [], [], hasattr(model, "posterior")
    rows = torch.arange(len(data)) if rows is None else torch.as_tensor(rows)
    with tqdm(total=len(rows), desc=f"encode {label}", unit=" images", unit_scale=True) as bar:
        for index in rows.split(ENCODE_BATCH):
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
    draw_matrices(scores, folder, title)
    names = factor_names(scores)
    images = data.batch(data.random_index(PICTURE_IMAGES, seed=0))
    draw_run(model, folder, data.reference_images(), images, title=title, factor_names=names)


def draw_matrices(scores: dict[str, Any], folder: Path, title: str) -> None:
    """A picture of every matrix of codes and factors behind the scores."""
    for key, found in _matrices(scores):
        values = np.array(found["values"])
        matrix(
            values,
            folder / f"matrix_{key}.png",
            rows=[f"z{i}" for i in range(len(values))],
            columns=found["factors"],
            title=f"{title}: codes and factors",
            kind=found["kind"],
        )


def factor_names(scores: dict[str, Any]) -> list[str] | None:
    """The factor that each latent follows best, by the first metric that can tell."""
    for _, found in _matrices(scores):
        return best_factors(np.array(found["values"]), found["factors"])
    return None


def _matrices(scores: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    keys = ("mig", "dci_disentanglement", "dci_fast_disentanglement")
    return [(k, e["matrix"]) for k, e in scores.items() if k in keys and e.get("matrix")]


def without_dead(
    codes: np.ndarray, logvar: np.ndarray | None, min_kl: float
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and logvar (N, D), latents of less than min_kl nats (mean KL to N(0, 1)) set to it.

    A latent that the decoder ignores still has means, of any scale, and they may follow a factor:
    metrics that do not look at the scale, such as MIG, count them. Raises ValueError where there is
    no posterior or no latent is left.
    """
    if logvar is None:
        raise ValueError("--min-kl needs a posterior: there are no log-variances")
    posterior = (torch.from_numpy(np.asarray(array, np.float64)) for array in (codes, logvar))
    kl = gaussian_kl(*posterior).mean(0).numpy()
    if not (kl >= min_kl).any():
        raise ValueError(f"no latent has {min_kl:g} nats; the largest KL is {kl.max():.3g}")
    print(f"{(kl < min_kl).sum()} of {len(kl)} latents have less than {min_kl:g} nats")
    return np.where(kl >= min_kl, codes, 0), np.where(kl >= min_kl, logvar, 0)


def _score(codes, factors, logvar, score, names=None) -> dict[str, dict[str, Any]]:
    score = dict(score)
    if (min_kl := score.pop("min_kl", None)) is not None:
        try:
            codes, logvar = without_dead(codes, logvar, min_kl)
        except ValueError as reason:  # of this model: the others keep their scores
            return {key: {"score": None, "reason": str(reason)} for key in score["metrics"]}
    samples = as_samples(codes, factors, names)
    with tqdm(total=len(score["metrics"]), desc="score", unit=" metrics", leave=False) as bar:

        def progress(name: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description(f"score {name}")

        scores = score_all(samples, None, logvar=logvar, progress=progress, **score)
    said = {} if min_kl is None else {"min_kl": min_kl}
    return {
        key: said | not_left_out(key, score["settings"], samples) | entry
        for key, entry in scores.items()
    }


def not_left_out(key: str, settings: dict[str, Any], samples: Samples) -> dict[str, str]:
    """A note where a metric was to leave out a factor that does not exist, as without names."""
    wanted = inspect.signature(METRICS[key]).parameters.get("without")
    wanted = settings.get(key, {}).get("without", wanted.default if wanted else ())
    names = [*samples.names, *samples.left_out]
    if lacks := [name for name in wanted if name not in names]:
        return {"note": f"no factor is called {', '.join(lacks)}, none of that name is left out"}
    return {}


def folder_of(run: Run, out: Path | None, several: bool) -> Path:
    """Where the scores and pictures of a run go (made if need be)."""
    path = run.path
    if out:
        folder = out / f"{run.values['name']}_seed{run.values['seed']}" if several else out
    elif path.is_dir():
        folder = path
    elif path.name == "checkpoint.pt":
        folder = path.parent
    else:
        folder = EVALUATED / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _label(run: dict[str, Any]) -> str:
    return f"{run['name']} seed {run['seed']}"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Scores as text: a line a metric, a column a model, so that any number of metrics fits."""
    keys = list(dict.fromkeys(key for scores in rows.values() for key in scores))
    labels = directed({key: key for key in keys})
    width, columns = max(map(len, labels.values())), {name: max(len(name), 8) for name in rows}
    lines = [" " * width + "".join(f"  {name:>{w}}" for name, w in columns.items())]
    for key in keys:
        cells = []
        for name, w in columns.items():
            value = rows[name].get(key, {}).get("score")
            cells.append(f"  {'-' if value is None else format(value, '.4f'):>{w}}")
        lines.append(f"{labels[key]:<{width}}" + "".join(cells))
    reasons: dict[str, set[str]] = {}  # line -> the models that it is true of
    for name, scores in rows.items():
        for key, entry in scores.items():
            said = [f"{key}: {entry[kind]}" for kind in ("reason", "note") if kind in entry]
            if constant := entry.get("constant_factors"):
                said.append(f"not scored, of one value: {', '.join(constant)}")
            for line in said:
                reasons.setdefault(line, set()).add(name)
    for line, names in reasons.items():
        models = ", ".join(name for name in rows if name in names)
        lines.append(line if len(names) == len(rows) else f"{models}: {line}")
    return "\n".join(lines)


def summarise(
    results: dict[str, Any], samples: dict[str, list[Codes]], seed: int
) -> dict[str, Any]:
    """Configuration -> metric -> mean, standard deviation (ddof 1), n over its runs; with UDR.

    samples: configuration -> the codes of each of its runs at `agreement_rows`.
    """
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
        if len(samples[name]) > 1:
            summary[name]["udr"] = agreement(samples[name], seed)
    return summary


def agreement_rows(total: int, seed: int) -> np.ndarray:
    """The images on which runs are compared with each other."""
    samples = min(AGREEMENT_IMAGES, total)
    return np.random.default_rng(seed).choice(total, size=samples, replace=False)


def agreement_codes(run: Run, seed: int) -> Codes:
    """Codes (n, D) of a run on the images on which runs are compared, and their log-variances."""
    return encode(run.model, run.data, run.label, agreement_rows(len(run.data), seed))


def agreement(runs: list[Codes], seed: int) -> dict[str, Any]:
    """UDR of the runs of one configuration: the mean, its protocol and the score of every run.

    runs: their `agreement_codes`. A code counts by its KL, where there is no posterior by its
    standard deviation (see `udr`).
    """
    codes, logvars = zip(*runs, strict=True)
    logvars = None if logvars[0] is None else logvars
    rng = np.random.default_rng(seed)
    try:
        result = udr(codes, rng, logvars=logvars, num_samples=len(codes[0]))
    except ValueError as error:
        return {"mean": None, "reason": str(error), "n": len(runs)}
    settings = dict(result.settings)
    scores = settings.pop("scores")
    spread = float(np.std(scores, ddof=1))
    facts = {"mean": result.score, "spread": spread, "n": len(runs), "scores": scores}
    return facts | {"protocol": result.protocol, "settings": settings}


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


def write_json(path: Path, result: dict[str, Any]) -> bytes:
    """Write a result whole or not at all; returns what. Raises ValueError where it holds a NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(result, indent=1, allow_nan=False) + "\n").encode()
    write_atomically(path, lambda file: file.write_bytes(text))
    return text


if __name__ == "__main__":
    sys.exit(main())
