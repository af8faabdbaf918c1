"""Networks, objectives and the two model families.

Contract: a model is an nn.Module with
    latent_dim, optimizers (name -> optimiser), dtype (of the convolutions)
    train_step(x, step) -> terms (name -> 0-d tensor), x (B, C, H, W) in [0, 1]
    encode(x) -> codes (B, D); decode(z) -> images (B, C, H, W) in [0, 1]
    sample(n, generator) -> z (n, D) from the prior
    span, trained_span: how far a traversal goes, and which part of that was trained (None: all)
    information(x) -> (D,) nats that each latent carries, called `information_name`
and, where it can tell, warnings(terms) -> what is wrong with a training, in words.
Random numbers come from torch's global generator; the loop seeds it before every step.
"""

import functools
import inspect
from typing import Any

from torch import nn

from models.infogan import InfoGAN
from models.objectives import OBJECTIVES
from models.vae import VAE

MODELS = {"vae": VAE, "infogan": InfoGAN}


def needs_objective(model: str) -> bool:
    """Whether this model's loss is chosen by the configuration's section `objective`."""
    return "objective" in inspect.signature(MODELS[model]).parameters


def build_model(
    image_shape: tuple[int, int, int], model: dict[str, Any], objective: dict[str, Any] | None
) -> nn.Module:
    """The model that the sections `model` and `objective` of a configuration describe.

    image_shape (C, H, W). Raises ValueError where the networks do not fit the images.
    """
    settings = dict(model)
    constructor = MODELS[settings.pop("name")]
    if objective is not None:
        arguments = dict(objective)
        chosen = OBJECTIVES[arguments.pop("name")]
        settings["objective"] = functools.partial(chosen, **arguments)
    return constructor(image_shape, **settings)
