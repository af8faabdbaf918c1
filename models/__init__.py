"""Networks, objectives and the two model families.

A model is an nn.Module with these members; x is (B, C, H, W) in [0, 1]:
    latent_dim, optimizers (name -> optimiser), dtype (of the convolutions)
    train_step(x, step) -> terms (name -> 0-d tensor), the same names at every step;
        train.cuda_graphs makes CUDA graphs of it; models/graphs.py says how to use `step` there
    encode(x) -> codes (B, D); decode(z) -> images (B, C, H, W) in [0, 1]
    sample(n, generator) -> z (n, D) from the prior; span: the range of a traversal
It may also have:
    posterior(x) -> mu, logvar, each (B, D); a category is one more column of mu
    category_sizes: column of the codes -> number of categories, where it is a category
    information(x) -> (D,), the nats that each latent carries; information_name
    warnings(terms) -> what is wrong with a training, in plain words
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from models.infogan import InfoGAN
from models.networks import NETWORKS
from models.objectives import OBJECTIVES
from models.rotation import layers_beside_code
from models.vae import VAE

MODELS = {"vae": VAE, "infogan": InfoGAN}
__all__ = ["MODELS", "NETWORKS", "OBJECTIVES", "VAE", "InfoGAN", "build_model", "needs_objective"]


def needs_objective(model: str) -> bool:
    """Whether the section `objective` of a configuration chooses the loss of this model."""
    return "objective" in inspect.signature(MODELS[model]).parameters


def build_model(
    image_shape: tuple[int, int, int],
    model: dict[str, Any],
    objective: dict[str, Any] | None = None,
    dataset_size: int | None = None,
) -> nn.Module:
    """The model that the sections `model` and `objective` of a configuration describe."""
    settings = dict(model)
    constructor = MODELS[settings.pop("name")]
    if settings.get("lr_decay", 1) < 1 and settings.get("lr_decay_steps", 1) == 1:
        raise ValueError("model.lr_decay: below 1 needs model.lr_decay_steps of 2 or more")
    if objective is not None:
        default = inspect.signature(constructor).parameters["latent_dim"].default
        facts = {"latent_dim": settings.get("latent_dim", default), "dataset_size": dataset_size}
        settings["objective"] = _objective(facts, **objective)
    built = constructor(image_shape, **settings)
    if settings.get("rotate_at"):
        layers_beside_code(built)
    return built


def _objective(facts: dict[str, int | None], name: str, **settings: Any) -> Callable[..., Any]:
    """The objective of a section; it gets those facts that its signature names."""
    objective = OBJECTIVES[name]
    arguments = inspect.signature(objective).parameters
    settings |= {key: value for key, value in facts.items() if key in arguments}
    if not inspect.isclass(objective):
        return functools.partial(objective, **settings)
    with torch.random.fork_rng(devices=[]):  # a VAE's first weights depend on its seed alone
        return objective(**settings)
