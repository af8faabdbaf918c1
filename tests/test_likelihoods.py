"""Likelihoods: torch's own distributions, the limits, and VAEs that train and draw with them."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import Bernoulli, ContinuousBernoulli, Laplace, Normal

import runs
import train
from figures import charts
from models import build_model
from models.likelihoods import LIKELIHOODS, nll
from models.vae import category_nll

TORCH = {
    "bernoulli": lambda logits: Bernoulli(logits=logits, validate_args=False),
    "gaussian": lambda logits: Normal(logits.sigmoid(), math.sqrt(0.5)),
    "laplace": lambda logits: Laplace(logits.sigmoid(), 1 / 3),
    "continuous_bernoulli": lambda logits: ContinuousBernoulli(logits=logits, lims=(0.5, 0.5)),
}
names = pytest.mark.parametrize("name", LIKELIHOODS)


def grid():
    """Logits beside pictures of 0, 1 and grey; none of them where a formula changes."""
    line = torch.tensor([-9.0, -2.0, -0.3, -0.09, 0.04, 0.11, 1.0, 6.0, 12.0], dtype=torch.float64)
    x = torch.tensor([0.0, 0.2, 0.71, 1.0], dtype=torch.float64)
    return [part.contiguous() for part in torch.meshgrid(line, x, indexing="ij")]


@names
def test_a_likelihood_is_that_of_torch_distributions(name):
    logits, x = grid()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, log_prob = nll(name, ours, x), TORCH[name](theirs).log_prob(x)
    torch.testing.assert_close(loss, -log_prob.sum(), rtol=1e-9, atol=0)
    pixels, mean = LIKELIHOODS[name].pixel_nll(logits, x), LIKELIHOODS[name].mean(logits)
    torch.testing.assert_close(pixels, -log_prob.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mean, TORCH[name](logits).mean, rtol=1e-8, atol=0)
    loss.backward()
    (-log_prob).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-8)
    assert gradcheck(lambda logits: nll(name, logits, x), ours)
    ours, ours32 = ours.grad, logits.bfloat16().requires_grad_()
    nll(name, ours32, x.bfloat16()).backward()
    torch.testing.assert_close(ours32.grad.double(), ours, rtol=0.03, atol=0.03)


@names
def test_logits_without_bound_and_around_0(name):
    logits = torch.tensor([-1e4, -90.0, -1e-3, -1e-30, 0.0, 1e-6, 0.1, 90.0, 1e4])
    mean = LIKELIHOODS[name].mean(logits)
    assert 0 <= mean.min() <= mean.max() <= 1
    assert (mean.diff() >= 0).all()
    assert mean[3:5].tolist() == [0.5, 0.5]
    logits.requires_grad_()
    loss = nll(name, logits, torch.full_like(logits, 0.25))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    # the slope of an exponential family is the mean minus the image, here in float32 at 0
    slope = {"gaussian": 0.125, "laplace": 0.75}.get(name, 0.25)
    torch.testing.assert_close(logits.grad[2:6], torch.full((4,), slope), rtol=2e-3, atol=0)


@names
@pytest.mark.parametrize("inference", ["assign", "gumbel"])
def test_a_step_with_categories_in_colour_uses_the_likelihood(name, inference):
    torch.manual_seed(0)
    settings = {"likelihood": name, "categories": 3, "category_inference": inference}
    vae = build_model((3, 32, 32), {"name": "vae"} | settings, {"name": "vae"})
    x = torch.rand(4, 3, 32, 32)
    first, *_, last = [vae.train_step(x, step)["recon"] for step in range(30)]
    assert last < first
    z, codes = torch.randn(4, 10), torch.tensor([[1.0]] * 4)
    with torch.no_grad():
        logits = vae.decoder(vae._inputs(torch.cat([z, codes], 1))).double()  # as torch needs
        expected = -TORCH[name](logits).log_prob(x.double()).sum((1, 2, 3))
        ours = category_nll(vae, x, z)[:, 1].double()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=0.01)
        picture = vae.decode(torch.cat([z, codes], 1))
    torch.testing.assert_close(picture.double(), TORCH[name](logits).mean, rtol=1e-4, atol=1e-5)


@pytest.fixture
def colours(tmp_path):
    """An npz of 48 squares in 3 colours at 4 x 4 places, with soft grey noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(40, size=(3, 4, 4, 64, 64, 3), dtype=np.uint8)
    for hue, x, y in np.ndindex(3, 4, 4):
        images[hue, x, y, 12 * y + 4 : 12 * y + 20, 12 * x + 4 : 12 * x + 20, hue] = 230
    path = tmp_path / "colours.npz"
    np.savez(path, images=images.reshape(-1, 64, 64, 3), sizes=(3, 4, 4))
    return f"dataset={{name: npz, path: {path}}}"


@names
def test_train_draws_and_names_the_likelihood(command, colours, tmp_path, name):
    overrides = [colours, f"model.likelihood={name}", f"name={name}"]
    assert train.main(command("config/twoD_vae.yaml", *overrides)) == 0
    run = runs.load(tmp_path / "runs" / name / "seed0")
    assert run.label == f"{name}, seed 0" + (name != "bernoulli") * f", {name} likelihood"
    names = {path.name for path in run.path.glob("*.png")}
    assert {"curves.png", "recon.png", "fixed.png", "random.png"} <= names


def test_infogan_trains_and_draws_in_colour(command, colours, tmp_path):
    assert train.main(command("config/twoD_infogan.yaml", colours)) == 0
    run = runs.load(tmp_path / "runs/small/seed0")
    assert run.data.image_shape == (3, 64, 64)
    assert run.model.decode(run.model.sample(5)).shape == (5, 3, 64, 64)


def test_an_unknown_likelihood_is_refused(command, capsys):
    assert train.main(command("config/twoD_vae.yaml", "model.likelihood=poisson")) == 2
    assert "likelihood: 'poisson' is not allowed; allowed: 'bernoulli'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recon", "scale"), [((400.0, 30.0), "log"), ((9.0, -90.0), "linear"), ((24.0, 23.0), "linear")]
)
def test_the_axis_of_recon_is_logarithmic_where_it_has_ticks(monkeypatch, recon, scale):
    figures = []
    monkeypatch.setattr(charts, "to_bytes", figures.append)
    log = pd.DataFrame({"step": [1, 2], "images": [8, 16], "recon": recon})
    charts.log_curves(log, title="t")
    charts.training_curves({"t": [log]}, title="t")
    assert [figure.axes[0].get_yscale() for figure in figures] == [scale, scale]
