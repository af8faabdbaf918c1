"""A run: its configuration, its folder, and its data and model ready for use."""

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn
from tqdm import tqdm

import config
from data import DATASETS, ImageData, load_dataset, mix, restrict
from figures import latents
from figures.charts import best_factors
from metrics import Samples, as_samples, score_all
from models import MODELS, build_model, needs_objective
from models.fast import accelerate, prepare_process
from models.graphs import CudaRecorder, GraphedStep, Step, scheduled
from models.objectives import OBJECTIVES
from models.rotation import rotate_latents
from training.checkpoint import NonFiniteError, load_checkpoint, restore
from training.device import choose_device, choose_precision, out_of_memory
from training.processes import PeerError

ENCODE_BATCH = 1024
PICTURE_IMAGES = 2048
RANDOM_SEED = 20170425  # of the samples in random.png
SAMPLE_IMAGES = 10_000  # images that are scored during training
PLAIN_NAMES = {"posX": "x", "posY": "y", "scale": "size", "orientation": "rotation"}
QUICK_SETTINGS = {  # fewer votes and points than published scores have: a tenth of their time
    "factor_vae": {"num_train": 2000, "num_test": 1000},
    "beta_vae_paper": {"num_train": 1000, "num_test": 1000, "classifier_seeds": 1},
}


@dataclass
class Run:
    """A model with its data; `path` is the folder of the run or a file of published weights."""

    path: Path
    values: dict[str, Any]  # the configuration
    step: int
    sha256: str  # of the checkpoint file
    data: ImageData
    model: nn.Module

    @property
    def label(self) -> str:
        """Name and seed, or the file of weights, and the step if the training is not complete."""
        is_weights = self.path.is_file() and not self.path.stem.startswith("checkpoint")
        label = title_of(self.values, self.path.stem if is_weights else "")
        steps = self.values["train"]["steps"]
        return label if self.step >= steps else f"{label} (step {self.step:,} of {steps:,})"

    @property
    def images_seen(self) -> int:
        return self.step * self.values["train"]["batch_size"]


@functools.cache
def schema() -> type[BaseModel]:
    """The schema of a configuration, made from all data sets, models and objectives."""
    return config.make_schema(DATASETS, MODELS, OBJECTIVES, restrict)


def resolve(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The complete configuration of a YAML file with overrides. Raises config.ConfigError."""
    values = config.apply_overrides(config.read_yaml(path), list(overrides))
    values = config.validate(schema(), values)
    name, has_objective = values["model"]["name"], values["objective"] is not None
    if needs_objective(name) and not has_objective:
        raise config.ConfigError(f"objective: missing; allowed: {', '.join(OBJECTIVES)}")
    if has_objective and not needs_objective(name):
        raise config.ConfigError(f"objective: not allowed, as '{name}' has its own loss")
    return values


def folder_of(values: dict[str, Any], root: Path) -> Path:
    """The folder of the run with this configuration."""
    return root / values["name"] / f"seed{values['seed']}"


def title_of(values: dict[str, Any], name: str = "") -> str:
    """A name, by default name and seed of a run, and its likelihood unless that is Bernoulli."""
    likelihood = values["model"].get("likelihood", "bernoulli")
    suffix = "" if likelihood == "bernoulli" else f", {likelihood} likelihood"
    return (name or "{name}, seed {seed}".format(**values)) + suffix


def identity(values: dict[str, Any]) -> dict[str, Any]:
    """What determines the weights of a run at a step, as "section.key" -> value."""
    flat = {"seed": values["seed"], "train.batch_size": values["train"]["batch_size"]}
    for section in ("dataset", "model", "objective"):
        for key, value in (values[section] or {}).items():
            flat[f"{section}.{key}"] = value
    for key in ("dataset.path", "dataset.labels"):  # the checkpoint holds checksums of the content
        flat.pop(key, None)
    return flat


def saved_state(folder: Path, values: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The checkpoint of a run folder, None without one; ValueError if it is of another run."""
    if not (folder / "checkpoint.pt").exists():
        return None
    state, _ = load_checkpoint(folder)
    state["config"] = validated(state, folder)
    old, new = identity(state["config"]), identity(values or state["config"])
    keys = [key for key in old | new if old.get(key) != new.get(key)]
    if keys:
        changes = "; ".join(f"{key}: {old.get(key)} there, {new.get(key)} here" for key in keys)
        raise ValueError(
            f"{folder} holds another run ({changes}); "
            "choose another name (name=...) or seed (seed=...), or delete that folder"
        )
    return state


def validated(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration in a checkpoint, completed with the defaults of newer keys."""
    try:
        return config.validate(schema(), state["config"])
    except config.ConfigError as error:
        raise config.ConfigError(f"{path}: {error}") from error


def refuse_other_data(state: dict[str, Any], data: ImageData, folder: Path) -> None:
    """Raise ValueError if a checkpoint was trained on other images than `data` holds."""
    if state.get("data", data.fingerprint) != data.fingerprint:
        raise ValueError(f"{folder} was trained on other images or factors than this data set has")


def build(values: dict[str, Any], device: torch.device) -> tuple[ImageData, nn.Module]:
    """The data set, and the model with the initial weights of its seed, on a device."""
    prepare_process()
    data = _load_data(json.dumps(values["dataset"]), device)
    if values["train"]["score_every"] and data.grid is None:
        raise ValueError("train.score_every: the data set has no factors to score; allowed: 0")
    torch.manual_seed(values["seed"])
    model = build_model(data.image_shape, values["model"], values["objective"], data.num_training)
    model = accelerate(model).to(device, memory_format=torch.channels_last)
    for optimizer in model.optimizers.values():  # a state made on the CPU follows the weights
        optimizer.load_state_dict(optimizer.state_dict())
    model.dtype = choose_precision(values["train"]["precision"], device)
    return data, model


@functools.lru_cache(maxsize=1)
def _load_data(section: str, device: torch.device) -> ImageData:
    """The data set of a configuration's section; one stays loaded for the next run that uses it."""
    return load_dataset(**json.loads(section)).to(device)


def load(path: Path, device: str = "auto", overrides: list[str] | tuple[str, ...] = ()) -> Run:
    """Load a trained model in eval mode; `overrides` may tell where its data set is now."""
    state, sha256 = load_checkpoint(path)
    state["config"] = config.apply_overrides(state["config"], list(overrides))
    values = validated(state, path)
    data, model = build(values, choose_device(device))
    refuse_other_data(state, data, path)
    restore(model, state, path)
    return Run(path, values, state["step"], sha256, data, model.eval())


def train_step(
    model: nn.Module, data: ImageData, seed: int = 0, graphs: bool = False
) -> Callable[..., Any]:
    """The model's train_step as a function of (index, step), as CUDA graphs if asked for."""

    def batch(index: torch.Tensor, step: int | Step) -> torch.Tensor:
        if data.decoration is None:
            return data.batch(index, model.dtype)
        # whichever process draws an image, its decoration is a function of (seed, step)
        key = scheduled("decoration", lambda number: mix(seed, number), step, like=index)
        return data.batch(index, model.dtype, key)

    recorder = choose_recorder(data.images.device) if graphs else None
    if recorder is not None:
        return GraphedStep(model, batch, recorder, data.images.device)
    return lambda index, step: model.train_step(batch(index, step), step)


def choose_recorder(device: torch.device) -> CudaRecorder | None:
    """What records CUDA graphs; None without a GPU or if torchrun started this process."""
    return CudaRecorder() if device.type == "cuda" and "RANK" not in os.environ else None


@torch.inference_mode()
def encode(
    model: nn.Module, data: ImageData, rows: np.ndarray | None = None, label: str = ""
) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes (n, D) float32 of all images, or of `rows` (n,), from a model in eval mode.

    Also the log-variances of the posterior, None for a model without one; a category is the last
    code and has no log-variance.
    """
    rows = torch.arange(len(data)) if rows is None else torch.as_tensor(rows)
    codes, logvars = [], []
    with progress_bar(len(rows), f"encode {label}", disable=not label) as bar:
        for index in rows.split(ENCODE_BATCH):
            x = data.batch(index, model.dtype)
            if hasattr(model, "posterior"):
                mu, logvar = model.posterior(x)
                logvars.append(logvar.float().cpu())
            else:
                mu = model.encode(x)
            codes.append(mu.float().cpu())
            bar.update(len(index))
    return torch.cat(codes).numpy(), torch.cat(logvars).numpy() if logvars else None


def rotate(model: nn.Module, data: ImageData) -> None:
    """Turn the latents of a VAE to independent axes, as on 10,000 fixed images of the training."""
    model.eval()
    rows = data.training_index(min(SAMPLE_IMAGES, data.num_training), seed=1)
    codes, logvar = encode(model, data, rows.numpy())
    mu = codes[:, : logvar.shape[1]]  # without a category
    rotate_latents(model, torch.from_numpy(mu), torch.from_numpy(logvar))
    model.train()


def sample_codes(model: nn.Module, data: ImageData) -> Samples:
    """Codes and factors of 10,000 fixed random images (model in eval mode)."""
    rows = data.random_index(min(SAMPLE_IMAGES, len(data)), seed=1).numpy()
    codes, factors = encode(model, data, rows)[0], data.grid.factors(rows)
    return as_samples(codes, factors, data.grid.names, without=data.nuisance)


def quick_scores(model: nn.Module, data: ImageData) -> dict[str, float]:
    """FactorVAE score, MIG and the beta-VAE paper's metric of `sample_codes`."""
    names = ["beta_vae_paper", "factor_vae", "mig"]
    options = {"settings": QUICK_SETTINGS, "scale_samples": True}
    scores = score_all(sample_codes(model, data), names, **options)
    return {key: np.nan if entry["score"] is None else entry["score"] for key, entry in scores}


def picture_images(data: ImageData) -> torch.Tensor:
    """The fixed random images of pictures, on which the information of latents is measured."""
    return data.batch(data.random_index(PICTURE_IMAGES, seed=0))


def factor_names(model: nn.Module, data: ImageData) -> list[str] | None:
    """For each latent the factors it shares most information with; None without factors."""
    if data.grid is None:
        return None
    samples = sample_codes(model, data)
    ((_, entry),) = score_all(samples, ["mig"], scale_samples=True)
    if "matrix" not in entry:  # a factor has one value only
        return None
    shares = np.array(entry["matrix"]["values"])  # of the entropy of each factor, (D, K)
    names = entry["matrix"]["factors"]
    columns = {name: samples.factors[:, k] for k, name in enumerate(samples.names)}
    nats = shares * np.log([len(np.unique(columns[name])) for name in names])
    return best_factors(nats, [PLAIN_NAMES.get(name, name) for name in names])


def progress_bar(total: int, label: str, unit: str = " images", **options: Any) -> tqdm:
    """A progress bar that writes at most one line in 30 s where the output is no terminal."""
    options |= {"unit": unit, "unit_scale": unit == " images", "dynamic_ncols": True}
    options["mininterval"] = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=label, **options)


def exit_code(script: str, work: Callable[[], int]) -> int:
    """Do the work of a command and return its exit code; errors become one sentence on stderr.

    It is 2 for bad input and files that cannot be read or written, 1 for a failed run, and 128 +
    the signal if the command was stopped.
    """
    try:
        return work()
    except BrokenPipeError:  # the reader of our output (| tee) has ended
        for stream in (sys.stdout, sys.stderr):  # else the flush at exit fails too
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        message, code = "stopped; the same command continues", 128 + signal.SIGINT
    except (ValueError, OSError, ModuleNotFoundError) as error:
        message, code = str(error), 2  # the module is tensorboard or wandb
    except (NonFiniteError, PeerError) as error:
        message, code = str(error), 1
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        message, code = "out of memory; a smaller train.batch_size or model needs less", 1
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    for line in message.splitlines():
        print(f"{script}: {rank}{line}", file=sys.stderr, flush=True)
    return code


@torch.inference_mode()
def draw(model: nn.Module, data: ImageData, title: str) -> dict[str, bytes]:
    """The pictures of a trained model in eval mode: file name -> content."""
    images = picture_images(data)
    nats, names = latents.measure(model, images), factor_names(model, data)
    references = data.reference_images()
    fixed = references | {"fixed noise": latents.fixed_noise(model, 1)[0]}
    return {
        "fixed.png": latents.traversal(model, fixed, nats, title=title, factor_names=names),
        "random.png": latents.samples(model, nats, seed=RANDOM_SEED, title=title),
        "recon.png": latents.reconstructions({"decoded": model}, images[:20], title=title),
        "traversal.gif": latents.traversal_gif(model, references, nats, factor_names=names),
    }
