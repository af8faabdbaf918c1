"""The VAE and its networks: the tables layer by layer, sizes, closed forms, the contract."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from models import NETWORKS, OBJECTIVES, InfoGAN, build_model
from models.networks import DEPTHS, SpatialBroadcast
from models.vae import gaussian_kl

PAIRS = [(objective, "seed") for objective in OBJECTIVES]
PAIRS += [("vae", network) for network in NETWORKS if network != "seed"]
SIDES = list(DEPTHS)


def make(objective="vae", shape=(1, 64, 64), **model):
    torch.manual_seed(0)
    return build_model(shape, {"name": "vae"} | model, {"name": objective}, 1000)


def images(n=4, shape=(1, 64, 64)):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, *shape, generator=generator) < 0.1).float()


def shapes_of(layers, x):
    """Shapes of the outputs of all layers with parameters."""
    shapes = []
    for layer in layers:
        x = layer(x)
        if any(True for _ in layer.parameters()):
            shapes.append(tuple(x.shape[1:]))
    return shapes


@pytest.mark.parametrize(("channels", "latent_dim"), [(1, 10), (3, 32)])
def test_networks_for_64_pixels_are_the_tables(channels, latent_dim):
    shape = (channels, 64, 64)
    x, z = images(2, shape), torch.zeros(2, latent_dim)
    vae = make(shape=shape, latent_dim=latent_dim)
    trunk = [(32, 32, 32), (32, 16, 16), (32, 8, 8), (64, 4, 4), (256,)]
    assert shapes_of(vae.encoder.trunk, x) == trunk
    assert vae.encoder.head.out_features == 2 * latent_dim
    decoder = [(256,), (256,), (32, 8, 8), (32, 16, 16), (32, 32, 32), shape]
    assert shapes_of(vae.decoder, z) == decoder
    other = make(shape=shape, latent_dim=latent_dim, network="broadcast")
    decoder = [(128, 16, 16), (64, 16, 16), (64, 16, 16), (32, 32, 32), shape]
    assert shapes_of(other.decoder, z) == decoder
    assert torch.equal(vae.encoder.head.weight, other.encoder.head.weight)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("side", SIDES)
def test_every_network_follows_the_size(network, side):
    vae, x = make(shape=(3, side, side), network=network), images(2, (3, side, side))
    if network == "fc":
        assert shapes_of(vae.encoder.trunk, x) == [(1200,), (1200,)]
        assert shapes_of(vae.decoder, x[:, 0, 0, :10]) == 3 * [(1200,)] + [(3 * side**2,)]
        assert [type(layer) for layer in vae.decoder[1:6:2]] == 3 * [torch.nn.Tanh]
    else:
        assert shapes_of(vae.encoder.trunk, x)[-2] == (64, 4, 4)
        strided = [m for m in vae.decoder.modules() if getattr(m, "stride", None) == (2, 2)]
        start = {"seed": 4, "broadcast": 16, "affine": 8}[network]  # the affine sprite is half
        assert start * 2 ** len(strided) == side
    assert all(term.isfinite() for term in vae.train_step(x, 0).values())
    assert vae.decode(vae.encode(x)).shape == x.shape


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 64, 32), (3, 256, 256)])
@pytest.mark.parametrize("model", ["vae", "infogan"])
def test_images_of_another_size_are_refused(model, shape):
    with pytest.raises(ValueError, match=rf"{shape[1]}x{shape[2]}; .* 32x32, 64x64, 128x128"):
        build_model(shape, {"name": model}, {"name": "vae"} if model == "vae" else None)


def test_a_spatial_broadcast_is_a_convolution_of_copies_and_coordinates():
    layer, z = SpatialBroadcast(3, 5, 4), torch.randn(2, 3)
    row = torch.linspace(-1, 1, 4)[:, None].expand(4, 4)
    planes = [z[:, :, None, None].expand(2, 3, 4, 4)]
    planes += [place.expand(2, 1, 4, 4) for place in (row, row.T)]
    weight = torch.cat([layer.vector.weight, layer.place.weight], 1)[:, :, None, None]
    expected = F.conv2d(torch.cat(planes, 1), weight, layer.vector.bias)
    torch.testing.assert_close(layer(z), expected)


def test_the_affine_map_from_image_to_sprite():
    decoder = make(network="affine").decoder
    z, corner = 2 * torch.randn(50, 10), torch.tensor([0.4, -0.9])
    x, y, size, angle, stretch = z[:, :5].unbind(1)
    half, s = 0.5 * torch.exp(0.5 * torch.tanh(0.5 * size)), 0.7 * torch.sigmoid(2 * stretch)
    right, down = half * s.exp() * corner[0], half * (-s).exp() * corner[1]
    cos, sin = torch.cos(0.5 * angle), torch.sin(0.5 * angle)
    point = torch.stack([0.3 * x + cos * right - sin * down, 0.3 * y + sin * right + cos * down])
    point = torch.cat([point, torch.ones(1, 50)]).T[:, :, None]
    corners = (decoder.place(z) @ point)[:, :, 0]
    torch.testing.assert_close(corners, corner.expand(50, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("pose", "centre"), [({}, (0, 0)), ({0: 1, 3: 2}, (0.3, 0)), ({1: -1, 4: 2}, (0, -0.3))]
)
def test_x_is_to_the_right_and_y_downwards(pose, centre, side):
    decoder, z = make(network="affine", shape=(1, side, side)).decoder, torch.zeros(1, 10)
    for latent, value in pose.items():
        z[0, latent] = value
    image = (torch.sigmoid(decoder(z)) - torch.sigmoid(decoder.background))[0, 0].detach()
    line = torch.arange(side) - (side - 1) / 2
    x, y = ((image * grid).sum() / image.sum() for grid in (line, line[:, None]))
    assert (float(x), float(y)) == pytest.approx(tuple(c * side / 2 for c in centre), abs=0.02)


def test_a_sprite_has_no_part_that_changes_sign_under_a_quarter_turn():
    decoder = make(network="affine", shape=(3, 64, 64)).decoder
    decoder.blob.data.normal_()
    z = 3 * torch.randn(4, 10)
    torch.nn.init.normal_(decoder.draw[-1].weight)
    sprite = decoder.sprite(z)
    even = sprite + sprite.rot90(2, (2, 3))
    torch.testing.assert_close(even, even.rot90(1, (2, 3)))
    assert (sprite - sprite.rot90(2, (2, 3))).abs().max() > 1e-3  # a heart can be drawn
    z[:, :4].normal_()
    torch.testing.assert_close(decoder.sprite(z), sprite)  # x, y, size and angle do not draw


def test_the_sprite_learns_from_its_step_on():
    vae, x = make(network="affine", draw_from=2), images()
    draw = vae.decoder.draw
    before = [p.detach().clone() for p in draw.parameters()]
    vae.train_step(x, 1)
    assert all(map(torch.equal, draw.parameters(), before))
    vae.train_step(x, 2)
    rate = vae.optimizers["vae"].param_groups[0]["lr"]
    moved = (draw[-1].weight - before[-2]).abs().max().item()
    assert moved == pytest.approx(rate, rel=0.01)  # Adam's first step, not its second
    vae.train_step(x, 3)
    assert all((p != b).any() for p, b in zip(draw.parameters(), before, strict=True))


def test_adagrad_divides_by_the_root_of_all_squared_gradients():
    vae = make(network="fc", optimizer="adagrad", lr=0.01)
    weight, slopes = vae.decoder[-2].bias, []
    expected = weight.detach().clone()
    weight.register_hook(slopes.append)
    for step in range(3):
        vae.train_step(images(), step)
        expected -= 0.01 * slopes[-1] / sum(slope.square() for slope in slopes).sqrt()
    torch.testing.assert_close(weight.detach(), expected)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"latent_dim: 4 is not .* affine; allowed: 5 or"):
        make(network="affine", latent_dim=4)
    with pytest.raises(ValueError, match=r"model.draw_from: 5; allowed with network seed: 0"):
        make(draw_from=5)
    with pytest.raises(ValueError, match=r"needs model.lr_decay_steps of 2 or more"):
        make(lr_decay=0.1)


def test_kl_is_that_of_torch_distributions():
    mu, logvar = torch.randn(5, 3), torch.randn(5, 3)
    expected = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected)


@pytest.mark.parametrize(("objective", "network"), PAIRS)
def test_every_objective_moves_both_networks_and_learns(objective, network):
    vae, x = make(objective, network=network), images(8)
    before = [p.detach().clone() for p in vae.parameters()]
    first = vae.train_step(x, 0)
    # noise is no sprite: the affine decoder has only its background to learn
    for step in range(1, 200 if network == "affine" else 60):
        last = vae.train_step(x, step)
        assert all(not term.requires_grad and term.isfinite() for term in last.values())
    assert all((p != b).any() for p, b in zip(vae.parameters(), before, strict=True))
    assert list(last) == list(first)
    assert last["recon"] < 0.75 * first["recon"]


def test_decode_sample_and_information_fit_the_contract():
    vae, x = make(shape=(3, 64, 64), latent_dim=5).eval(), images(6, (3, 64, 64))
    decoded = vae.decode(vae.encode(x))
    assert decoded.shape == x.shape
    assert 0 <= decoded.min() <= decoded.max() <= 1
    torch.testing.assert_close(vae.information(x), gaussian_kl(*vae.posterior(x)).mean(0))
    draws = vae.sample(20_000, torch.Generator().manual_seed(0))
    assert draws.mean().abs() < 0.02
    assert draws.std() == pytest.approx(1, abs=0.02)


def test_bfloat16_changes_the_terms_by_less_than_a_hundredth():
    vae, x = make(), images(16)
    losses = []
    for vae.dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        losses.append(vae.objective(vae, x, 0)[0].item())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert vae.encode(x).dtype == torch.float32


def test_a_posterior_collapse_is_reported_after_the_first_steps():
    vae, texts = make(), []
    for vae.step in (0, 1_999, 2_000):
        texts.append(vae.warnings({"kl": 0.01}))
    assert texts[:2] == [[], []]  # the KL of a healthy training is as low at first
    assert texts[2] == ["posterior collapse: the codes carry only 0.0100 nats about an image"]
    assert vae.warnings({"kl": 3.0}) == []


@pytest.mark.parametrize(
    "build", [make, lambda **settings: InfoGAN((1, 64, 64), network="sn", **settings)]
)
def test_learning_rates_are_a_function_of_the_step(build):
    def rates(model):
        return [o.param_groups[0]["lr"] for o in model.optimizers.values()]

    model = build(lr_decay=0.01, lr_decay_steps=10)
    start = rates(model)
    for step, share in ((0, 1.0), (10, 0.01), (5, 0.1), (50, 0.01)):
        model.train_step(images(), step)
        assert rates(model) == pytest.approx([rate * share for rate in start])
