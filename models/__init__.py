"""Networks, objectives and the two model families.

Contract: a model is an nn.Module with
    latent_dim, optimizers (name -> optimiser), dtype (of the convolutions)
    train_step(x, step) -> terms (name -> 0-d tensor), the same ones at every step;
        x (B, C, H, W) in [0, 1]
    encode(x) -> codes (B, D); decode(z) -> images (B, C, H, W) in [0, 1]
    sample(n, generator) -> z (n, D) from the prior
    span, trained_span: how far a traversal goes, and which part of that was trained (None: all)
    information(x) -> (D,) nats that each latent carries, called `information_name`
    compile(**settings) compiles its networks (torch's own does it where there is a forward)
and, where it can tell, warnings(terms) -> what is wrong with a training, in words; where it takes
images of another size than 64x64, trial_shape (C, H, W) of the class.
Random numbers come from torch's global generator; the loop seeds it before every step.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from models.infogan import InfoGAN
from models.objectives import OBJECTIVES
from models.vae import VAE

MODELS = {"vae": VAE, "infogan": InfoGAN}


def needs_objective(model: str) -> bool:
    """Whether this model's loss is chosen by the configuration's section `objective`."""
    return "objective" in inspect.signature(MODELS[model]).parameters


def build_model(
    image_shape: tuple[int, int, int],
    model: dict[str, Any],
    objective: dict[str, Any] | None,
    dataset_size: int | None = None,
) -> nn.Module:
    """The model that the sections `model` and `objective` of a configuration describe.

    image_shape (C, H, W); dataset_size: images to train on, which some objectives need (None: of a
    model that will not train). Raises ValueError where the networks do not fit the images.
    """
    settings = dict(model)
    constructor = MODELS[settings.pop("name")]
    if objective is not None:
        parameter = inspect.signature(constructor).parameters.get("latent_dim")
        default = parameter.default if parameter else None
        facts = {"latent_dim": settings.get("latent_dim", default), "dataset_size": dataset_size}
        settings["objective"] = build_objective(objective, facts)
    return constructor(image_shape, **settings)


def try_model(model: dict[str, Any], objective: dict[str, Any] | None) -> None:
    """Raise ValueError where a constructor refuses its settings, without weights or data.

    For images of 64x64, or of the class's own `trial_shape` (C, H, W). What cannot be built without
    weights is not tried.
    """
    shape = getattr(MODELS[model["name"]], "trial_shape", (1, 64, 64))
    with torch.device("meta"), contextlib.suppress(RuntimeError):
        build_model(shape, model, objective)


def build_objective(objective: dict[str, Any], facts: dict[str, Any]) -> Callable[..., Any]:
    """The objective of a section, given the facts that it asks for by name."""
    arguments = dict(objective)
    chosen = OBJECTIVES[arguments.pop("name")]
    asked = inspect.signature(chosen).parameters
    arguments |= {name: fact for name, fact in facts.items() if name in asked}
    if not inspect.isclass(chosen):
        return functools.partial(chosen, **arguments)
    with torch.random.fork_rng(devices=[]):  # a seed's VAE starts the same under every objective
        return chosen(**arguments)
