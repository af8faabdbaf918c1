"""Learning rates are a function of the step, for every model family."""

import functools

import pytest
import torch

from models.infogan import InfoGAN
from models.objectives import vae_elbo
from models.schedules import log_linear
from models.vae import VAE

BUILD = {
    "vae": functools.partial(VAE, (1, 64, 64), vae_elbo, lr=1e-3),
    "infogan": functools.partial(InfoGAN, (1, 64, 64), network="sn", lr_g=1e-3, lr_d=4e-3),
}


def test_log_linear_passes_its_ends_and_its_geometric_mean():
    assert [log_linear(100, 1, step, 10) for step in (0, 5, 10, 50)] == pytest.approx(
        [100, 10, 1, 1]
    )


def rates(model):
    return {name: o.param_groups[0]["lr"] for name, o in model.optimizers.items()}


@pytest.mark.parametrize("family", BUILD)
def test_rates_fall_with_the_step_alone(family):
    model, x = BUILD[family](lr_decay=0.01, lr_decay_steps=10), torch.rand(4, 1, 64, 64)
    start = rates(model)
    for step, share in ((0, 1.0), (10, 0.01), (5, 0.1)):
        model.train_step(x, step)
        assert rates(model) == pytest.approx({name: rate * share for name, rate in start.items()})


@pytest.mark.parametrize("family", BUILD)
def test_rates_are_constant_by_default(family):
    model = BUILD[family]()
    start = rates(model)
    model.train_step(torch.rand(4, 1, 64, 64), 1000)
    assert rates(model) == start
