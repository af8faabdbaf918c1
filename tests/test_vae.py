"""The VAE and its objectives against closed forms and torch.distributions."""

import inspect
import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from benchmarks.moments import moments
from models import build_model, needs_objective
from models.networks import DECODERS, SpatialBroadcast
from models.objectives import OBJECTIVES
from models.vae import VAE, gaussian_kl

DATASET_SIZE = 1000
PAIRS = [(objective, "seed") for objective in OBJECTIVES]
PAIRS += [("vae", network) for network in DECODERS if network != "seed"]


def make(objective="vae", channels=1, latent_dim=10, network="seed", draw_from=0, **settings):
    torch.manual_seed(0)
    section, shape = {"name": objective} | settings, (channels, 64, 64)
    model = {"name": "vae", "latent_dim": latent_dim, "network": network, "draw_from": draw_from}
    return build_model(shape, model, section, DATASET_SIZE)


def images(n=4, channels=1):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, channels, 64, 64, generator=generator) < 0.1).float()


def shapes_of(network, x):
    found = []
    for layer in network:
        x = layer(x)
        if any(True for _ in layer.parameters()):
            found.append(tuple(x.shape[1:]))
    return found


@pytest.mark.parametrize(("channels", "latent_dim"), [(1, 10), (3, 32)])
def test_the_networks_are_the_seed_s_tables(channels, latent_dim):
    vae = make(channels=channels, latent_dim=latent_dim)
    trunk = shapes_of(vae.encoder.trunk, images(2, channels))
    assert trunk == [(32, 32, 32), (32, 16, 16), (32, 8, 8), (64, 4, 4), (256,)]
    assert vae.encoder.head.out_features == 2 * latent_dim
    decoder = shapes_of(vae.decoder, torch.zeros(2, latent_dim))
    assert decoder == [
        (256,),
        (256,),
        (32, 8, 8),
        (32, 16, 16),
        (32, 32, 32),
        (channels, 64, 64),
    ]


@pytest.mark.parametrize(("channels", "latent_dim"), [(1, 10), (3, 32)])
def test_the_broadcast_decoder_is_told_where_it_draws(channels, latent_dim):
    vae = make(channels=channels, latent_dim=latent_dim, network="broadcast")
    assert shapes_of(vae.decoder, torch.zeros(2, latent_dim)) == [
        (128, 16, 16),
        (64, 16, 16),
        (64, 16, 16),
        (32, 32, 32),
        (channels, 64, 64),
    ]
    other = make(channels=channels, latent_dim=latent_dim)
    assert torch.equal(vae.encoder.head.weight, other.encoder.head.weight)


def test_a_spatial_broadcast_is_a_convolution_of_copies_and_coordinates():
    layer = SpatialBroadcast(3, 5, 4)
    z = torch.randn(2, 3)
    row = torch.linspace(-1, 1, 4)[:, None].expand(4, 4)
    planes = [z[:, :, None, None].expand(2, 3, 4, 4)]
    planes += [place.expand(2, 1, 4, 4) for place in (row, row.T)]
    weight = torch.cat([layer.vector.weight, layer.place.weight], 1)[:, :, None, None]
    expected = F.conv2d(torch.cat(planes, 1), weight, layer.vector.bias)
    torch.testing.assert_close(layer(z), expected)


def test_the_affine_decoder_places_its_sprite():
    decoder = make(network="affine").decoder
    z, corner = 2 * torch.randn(50, 10), torch.tensor([0.4, -0.9])
    x, y, size, angle, stretch = z[:, :5].unbind(1)
    half, s = 0.5 * torch.exp(0.5 * torch.tanh(0.5 * size)), 0.7 * torch.sigmoid(2 * stretch)
    right, down = half * s.exp() * corner[0], half * (-s).exp() * corner[1]
    cos, sin = torch.cos(0.5 * angle), torch.sin(0.5 * angle)
    image = torch.stack([0.3 * x + cos * right - sin * down, 0.3 * y + sin * right + cos * down])
    image = torch.cat([image, torch.ones(1, 50)]).T[:, :, None]
    found = (decoder.place(z) @ image)[:, :, 0]
    torch.testing.assert_close(found, corner.expand(50, 2), atol=1e-4, rtol=1e-4)


def centre(decoder, **pose):
    """Centre (x, y) of what a decoder makes of these latents, in pixels from the image's."""
    z = torch.zeros(1, 10)
    for name, value in pose.items():
        z[0, decoder.pose.index(name)] = value
    image = (torch.sigmoid(decoder(z)) - torch.sigmoid(decoder.background)).detach()
    return tuple((moments(image)[0, :2] - 31.5).tolist())


def test_x_is_to_the_right_and_y_downwards():
    decoder = make(network="affine").decoder
    assert centre(decoder) == pytest.approx((0, 0), abs=1e-3)
    assert centre(decoder, x=1, angle=2) == pytest.approx((0.3 * 32, 0), abs=0.01)
    assert centre(decoder, y=-1, stretch=2) == pytest.approx((0, -0.3 * 32), abs=0.01)


def test_a_sprite_keeps_nothing_that_changes_its_sign_under_a_quarter_turn():
    decoder = make(network="affine", channels=3).decoder
    decoder.blob.data.normal_()
    z = 3 * torch.randn(4, 10)
    blob = decoder.sprite(z)
    assert blob.shape == (4, 3, 32, 32)
    torch.testing.assert_close(blob, blob.rot90(1, (2, 3)))
    torch.testing.assert_close(blob[0], blob[1])  # nothing is drawn yet
    torch.nn.init.normal_(decoder.draw[-1].weight)
    sprite = decoder.sprite(z)
    even = sprite + sprite.rot90(2, (2, 3))
    torch.testing.assert_close(even, even.rot90(1, (2, 3)))
    assert (sprite - sprite.rot90(2, (2, 3))).abs().max() > 1e-3  # a heart can be drawn
    assert (sprite[0] - sprite[1]).abs().max() > 1e-3
    z[:, :4].normal_()
    torch.testing.assert_close(decoder.sprite(z), sprite)  # x, y, size and angle do not draw


def test_the_stretch_takes_part_in_the_drawing():
    vae = make(network="affine", channels=3, latent_dim=5)
    torch.nn.init.normal_(vae.decoder.draw[-1].weight)
    sprites = vae.decoder.sprite(torch.tensor([[0.0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]))
    assert (sprites[0] - sprites[1]).abs().max() > 1e-3
    assert vae.decode(torch.zeros(2, 5)).shape == (2, 3, 64, 64)


def test_places_keep_full_precision():
    vae, z = make(network="affine"), torch.randn(8, 10)
    exact = vae.decode(z)  # of the blob alone
    vae.dtype = torch.bfloat16
    assert torch.equal(vae.decode(z), exact)


def test_the_affine_decoder_learns_to_draw_from_a_step_on():
    vae, x = make(network="affine", draw_from=2), images()
    before = [p.detach().clone() for p in vae.decoder.draw.parameters()]
    vae.train_step(x, 0)
    vae.train_step(x, 1)
    assert all(map(torch.equal, vae.decoder.draw.parameters(), before))
    vae.train_step(x, 2)
    rate = vae.optimizers["vae"].param_groups[0]["lr"]
    moved = (vae.decoder.draw[-1].weight - before[-2]).abs().max().item()
    assert moved == pytest.approx(rate, rel=0.01)  # Adam's first step, not its third
    vae.train_step(x, 3)
    assert all((p != b).any() for p, b in zip(vae.decoder.draw.parameters(), before, strict=True))


def test_the_affine_decoder_says_what_it_cannot_have():
    with pytest.raises(
        ValueError, match=r"model.latent_dim: 4 is not .* network affine; allowed: 5 or"
    ):
        make(network="affine", latent_dim=4)
    with pytest.raises(ValueError, match=r"model.draw_from: 5 is not .* network seed; allowed: 0"):
        make(draw_from=5)


def test_every_decoder_can_be_chosen():
    network = inspect.signature(VAE).parameters["network"]
    assert get_args(network.annotation) == tuple(DECODERS)


def test_kl_is_that_of_torch_distributions():
    mu, logvar = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected)


def test_terms_are_nats_per_image():
    vae, x = make(), images()
    torch.manual_seed(3)
    logits, _, mu, logvar = vae(x)
    likelihood = torch.distributions.Bernoulli(logits=logits).log_prob(x)
    torch.manual_seed(3)
    loss, terms = vae.objective(vae, x, 0)
    torch.testing.assert_close(terms["recon"], -likelihood.sum() / len(x))
    torch.testing.assert_close(terms["kl"], gaussian_kl(mu, logvar).sum() / len(x))
    torch.testing.assert_close(loss, terms["recon"] + terms["kl"])
    torch.testing.assert_close(terms["elbo"], -loss)
    per_latent = torch.stack([terms[f"kl_{i}"] for i in range(10)])
    torch.testing.assert_close(per_latent.sum(), terms["kl"])


def loss_of(objective, step=0, **settings):
    vae = make(objective, **settings)
    torch.manual_seed(3)
    loss, terms = vae.objective(vae, images(), step)
    return loss.item(), {name: term.item() for name, term in terms.items()}


def test_beta_weighs_the_kl():
    loss, terms = loss_of("beta_vae", beta=4.0)
    assert loss == pytest.approx(terms["recon"] + 4 * terms["kl"], rel=1e-6)
    assert loss_of("beta_vae", beta=1.0)[0] == loss_of("vae")[0]


@pytest.mark.parametrize(("step", "capacity"), [(0, 0.0), (5, 12.5), (10, 25.0), (1000, 25.0)])
def test_capacity_grows_linearly_and_stays(step, capacity):
    loss, terms = loss_of("capacity_vae", step, gamma=100.0, c_max=25.0, c_steps=10)
    assert terms["capacity"] == capacity
    assert loss == pytest.approx(terms["recon"] + 100 * abs(terms["kl"] - capacity), rel=1e-5)


@pytest.mark.parametrize(("step", "beta"), [(0, 100.0), (5, math.sqrt(400)), (10, 4), (99, 4)])
def test_beta_is_annealed_log_linearly(step, beta):
    settings = {"beta_start": 100.0, "beta": 4.0, "anneal_steps": 10}
    loss, terms = loss_of("annealed_beta_vae", step, **settings)
    assert terms["beta"] == pytest.approx(beta, rel=1e-6)
    assert loss == pytest.approx(terms["recon"] + beta * terms["kl"], rel=1e-6)


@pytest.mark.parametrize(("objective", "network"), PAIRS)
def test_every_objective_moves_both_networks(objective, network):
    vae = make(objective, network=network)
    before = [p.detach().clone() for p in vae.parameters()]
    for step in range(2):  # the affine decoder's drawing is 0 in the first
        terms = vae.train_step(images(), step)
    assert all(not term.requires_grad and term.isfinite() for term in terms.values())
    assert all((p != b).any() for p, b in zip(vae.parameters(), before, strict=True))


@pytest.mark.parametrize(("objective", "network"), PAIRS)
def test_every_objective_learns_a_handful_of_images(objective, network):
    vae, x = make(objective, network=network), images(8)
    first = vae.train_step(x, 0)["recon"].item()
    # noise is no sprite: the affine decoder has only its background to learn
    for step in range(1, 200 if network == "affine" else 60):
        last = vae.train_step(x, step)["recon"].item()
    assert last < 0.75 * first


def test_encode_decode_and_information_fit_the_contract():
    vae, x = make(channels=3, latent_dim=5).eval(), images(6, 3)
    codes = vae.encode(x)
    decoded = vae.decode(codes)
    assert codes.shape == (6, 5)
    assert decoded.shape == x.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    torch.testing.assert_close(vae.information(x), gaussian_kl(*vae.posterior(x)).mean(0))
    draws = vae.sample(20_000, torch.Generator().manual_seed(0))
    assert draws.mean().abs() < 0.02
    assert draws.std() == pytest.approx(1, abs=0.02)


def test_bfloat16_changes_the_terms_by_less_than_a_hundredth():
    vae, x = make(), images(16)
    torch.manual_seed(0)
    exact = vae.objective(vae, x, 0)[0].item()
    vae.dtype = torch.bfloat16
    torch.manual_seed(0)
    assert vae.objective(vae, x, 0)[0].item() == pytest.approx(exact, rel=0.01)
    assert vae.encode(x).dtype == torch.float32


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="64x64"):
        build_model((1, 28, 28), {"name": "vae"}, {"name": "vae"})


def test_only_the_vae_takes_an_objective():
    assert needs_objective("vae")
    assert not needs_objective("infogan")
