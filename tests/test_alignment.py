"""What the main model adds to a beta-VAE: schedules, Muon, and latents turned by FastICA."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models import build_model
from models.hyperparameters import at_step
from models.muon import Muon, is_hidden, orthogonal
from models.rotation import rotate_latents

X = (torch.rand(8, 1, 64, 64, generator=torch.Generator().manual_seed(1)) < 0.1).float()


def make(objective=None, **model):
    torch.manual_seed(0)
    return build_model((1, 64, 64), {"name": "vae"} | model, objective or {"name": "vae"}, 1000)


def test_a_schedule_is_log_linear_between_its_steps():
    knots = {10: 100.0, 20: 1.0, 40: 4.0}
    values = [at_step(knots, step) for step in (0, 10, 15, 20, 30, 40, 99)]
    assert values == pytest.approx([100, 100, 10, 1, 2, 4, 4])


def test_beta_follows_its_schedule():
    vae = make({"name": "beta_vae", "beta": {0: 100, 10: 1}})
    terms = vae.train_step(X, 5)
    assert terms["beta"] == pytest.approx(10)
    assert terms["loss"] == pytest.approx(float(terms["recon"] + 10 * terms["kl"]), rel=1e-5)


@pytest.mark.parametrize("shape", [(32, 64), (64, 32), (256, 1024)])
def test_a_step_of_muon_is_close_to_the_orthogonal_factor(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    step = orthogonal(matrix)
    values = torch.linalg.svdvals(step)
    assert values.min() > 0.6
    assert values.max() < 1.3
    cosine = (step * (u @ v)).sum() / step.norm() / (u @ v).norm()
    assert cosine > 0.97


def test_muon_scales_its_steps_with_the_shape():
    tall, kernel = nn.Parameter(torch.zeros(128, 32)), nn.Parameter(torch.zeros(32, 8, 4, 4))
    optimizer = Muon([tall, kernel], lr=0.1)
    for weight in (tall, kernel):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    for weight, factor in ((tall, 2.0), (kernel, 1.0)):
        values = torch.linalg.svdvals(weight.detach().flatten(1))
        assert float(values.mean()) == pytest.approx(0.09 * factor, rel=0.2)
        assert (weight * weight.grad).sum() < 0  # downhill


def test_muon_takes_the_hidden_layers_over():
    vae = make(muon_from=2)
    hidden = [name for name, weight in vae.named_parameters() if is_hidden(weight)]
    assert hidden == [
        *(f"encoder.trunk.{i}.weight" for i in (2, 4, 6, 9)),
        *(f"decoder.{i}.weight" for i in (2, 7, 9)),
    ]
    steps = []
    for step in range(3):
        vae.train_step(X, step)
        state = vae.optimizers["vae"].state
        steps.append([int(state[dict(vae.named_parameters())[name]]["step"]) for name in hidden])
    assert steps == [[1] * 7, [2] * 7, [2] * 7]
    assert len(vae.optimizers["muon"].state) == 7


def linear_vae(mixing, noise):
    """A VAE whose encoder is linear: mu = mixing @ x, with the same noise everywhere."""
    encoder, decoder = nn.Linear(3, 6), nn.Linear(3, 5)
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([mixing, torch.zeros(3, 3)]))
        encoder.bias.copy_(torch.tensor([0.5, -0.2, 0.0, *[noise] * 3]).float())
    optimizers = {"vae": torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])}
    sizes = {"latent_dim": 3, "categories": 0}
    return SimpleNamespace(encoder=encoder, decoder=decoder, optimizers=optimizers, **sizes)


def test_turned_latents_are_the_sources_and_give_the_same_images():
    generator = torch.Generator().manual_seed(0)
    sources = 3.4 * (torch.rand(5000, 3, generator=generator) - 0.5)  # standard deviation about 1
    half = 0.5**0.5
    mixing = torch.tensor([[half, half, 0.0], [half, -half, 0.0], [0.0, 0.0, 1e-3]])
    vae = linear_vae(mixing, noise=-3.0)
    vae.encoder.bias.data[5] = 0.0  # the third latent is inactive
    mu, logvar = vae.encoder(sources).detach().chunk(2, 1)
    images = vae.decoder(mu)
    rotate_latents(vae, mu, logvar)

    turned, noise = vae.encoder(sources).chunk(2, 1)
    correlation = torch.corrcoef(torch.cat([turned, sources], 1).T)[:3, 3:].abs()
    assert correlation[:2, :2].max(1).values.min() > 0.999
    assert correlation[:2, :2].min() < 0.05
    moments = (turned.square() + noise.exp()).mean(0)
    torch.testing.assert_close(moments[:2], torch.ones(2), atol=2e-2, rtol=0)
    torch.testing.assert_close(vae.decoder(turned), images, atol=1e-5, rtol=1e-5)
    assert torch.equal(turned[:, 2], mu[:, 2])


def test_a_network_without_linear_layers_beside_the_code_is_refused():
    make(rotate_at=[1], network="broadcast")
    with pytest.raises(ValueError, match=r"model.rotate_at: the first layer of the decoder"):
        make(rotate_at=[1], network="affine")
