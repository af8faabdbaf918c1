"""InfoGAN beside its training: networks, codes, encode and decode, refusals, warnings."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from models import InfoGAN
from models.gan_networks import GAN_NETWORKS

networks = pytest.mark.parametrize("network", GAN_NETWORKS)


def make(network="sn", shape=(1, 64, 64), **settings):
    torch.manual_seed(0)
    return InfoGAN(shape, network=network, **settings)


def row_shapes(rows, x):
    return [tuple((x := row(x)).shape[1:]) for row in rows]


SN_TRUNK = [(32, 32, 32), (32, 16, 16), (64, 8, 8), (64, 4, 4), (1024,), (128,)]
SEED_TRUNK = [(64, 31, 31), (128, 14, 14), (256, 6, 6), (256, 3, 3), (256, 2, 2)]
TRUNKS = {"seed": SEED_TRUNK, "sn": SN_TRUNK, "broadcast": SN_TRUNK}
GENERATORS = {  # the shapes behind the rows, without the image
    "seed": [(256,), (256,), (128, 4, 4), (64, 8, 8), (64, 16, 16), (32, 32, 32)],
    "sn": [(128,), (64, 4, 4), (64, 8, 8), (32, 16, 16), (32, 32, 32)],
    "broadcast": [(128, 16, 16), (64, 16, 16), (64, 16, 16), (32, 32, 32)],
}


@networks
@pytest.mark.parametrize("channels", [1, 3])
def test_the_networks_for_64_pixels_are_the_tables(network, channels):
    model, x = make(network, (channels, 64, 64)), torch.rand(2, channels, 64, 64)
    rows = [*GENERATORS[network], (channels, 64, 64)]
    assert row_shapes(model.generator, torch.randn(2, 10)) == rows
    d = model.discriminator
    assert row_shapes(d.trunk, x) == TRUNKS[network]
    q_head = [(128, 1, 1), (5, 1, 1)] if network == "seed" else [(128,), (5,)]
    assert row_shapes(d.q_head, d.trunk(x)) == q_head
    assert [out.shape for out in d(x)] == [(2,), (2, 5)]


@networks
@pytest.mark.parametrize("side", [32, 128])
def test_the_depth_of_every_network_follows_the_size(network, side):
    model, x = make(network, (1, side, side), cr_weight=1.0), torch.rand(4, 1, side, side)
    maps = row_shapes(model.discriminator.trunk, x)
    assert TRUNKS[network][-1 if network == "seed" else 3] in maps
    assert all(term.isfinite() for term in model.train_step(x, 0).values())
    model.eval()
    assert model.decode(model.encode(x)).shape == x.shape


def test_the_layers_of_the_seed_network():
    model = make("seed")
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model.generator, model.discriminator)]
    assert sizes == [823_873, 2_888_390]  # the sums of the rows of the table


def test_spectral_norm_is_on_every_layer_of_d_and_q_of_sn_alone():
    d = make("sn").discriminator
    layers = [m for m in d.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 8
    for _ in range(100):
        d(torch.rand(1, 1, 64, 64))
    for layer in layers:
        sigma = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert float(sigma) == pytest.approx(1, abs=0.02)
    assert not any("parametrizations" in name for name, _ in make("broadcast").named_parameters())


@networks
def test_initial_weights_are_the_papers_or_the_layers_own(network):
    layer = make(network).discriminator.trunk[-1][0]  # a Linear or a Conv2d, 1,024 inputs or more
    own = 1 / math.sqrt(3 * layer.weight[0].numel())  # uniform within 1 / sqrt(inputs)
    weight = layer.parametrizations.weight.original if network == "sn" else layer.weight
    expected = GAN_NETWORKS[network].init_std or own
    assert float(weight.detach().std()) == pytest.approx(expected, rel=0.02)


@networks
def test_real_and_fake_in_one_batch_is_exact_without_batch_norm_only(network):
    real, fake = torch.rand(2, 8, 1, 64, 64)
    model = make(network)
    d = model.discriminator.eval() if network == "sn" else model.discriminator  # one iteration
    together = d(torch.cat([real, 0.1 * fake]))[0]
    apart = torch.cat([d(real)[0], d(0.1 * fake)[0]])
    assert torch.allclose(together, apart, atol=1e-6) == model.joint == (network != "seed")


def test_the_loss_of_q_is_the_negative_log_likelihood():
    model = make(continuous=2, categorical=(3,))
    z, q = model.sample(64), torch.randn(64, 5)
    gaussian = -Normal(q[:, :2], 1.0).log_prob(z[:, :2]).mean(0)
    category = -q[:, 2:].log_softmax(1)[torch.arange(64), z[:, 2].long()].mean()
    loss, bound = model._code_losses(q, z)
    torch.testing.assert_close(loss, torch.cat([gaussian, category[None]]))
    torch.testing.assert_close(bound[2], math.log(3) - category)


@pytest.mark.parametrize(("share", "error", "nats"), [(0, 1 / 3**0.5, -0.1765), (1, 0.1, 1.577)])
def test_the_bound_of_a_uniform_code_is_its_entropy_less_its_cross_entropy(share, error, nats):
    model, z = make(continuous=1), torch.rand(200_000, 1) * 2 - 1
    mean = z + error * torch.randn_like(z) if share else 0 * z  # of a Q that knows z, or nothing
    expected = math.log(2) + float(Normal(mean, error).log_prob(z).mean())
    bound = float(model._code_losses(mean, z)[1])
    assert bound == pytest.approx(expected, abs=0.005)
    assert bound == pytest.approx(nats, abs=0.01)


def test_samples_follow_the_prior_and_categories_are_one_hot():
    model = make(continuous=1, categorical=(3, 2), noise=1)
    z = torch.tensor([[0.5, 2, 0], [0.5, -2, 0.9]])
    inputs = model._inputs(z, torch.full((2, 1), 0.25))
    assert inputs.tolist() == [[0.5, 0, 0, 1, 1, 0, 0.25], [0.5, 1, 0, 0, 0, 1, 0.25]]
    model = make(continuous=2, categorical=(3,))
    z = model.sample(30_000, torch.Generator().manual_seed(0))
    assert z[:, :2].abs().max() <= 1
    assert z[:, :2].mean(0).tolist() == pytest.approx([0, 0], abs=0.02)
    assert z[:, :2].var(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.01)
    assert z[:, 2].long().bincount().tolist() == pytest.approx([10_000] * 3, rel=0.03)
    assert model.sample_noise(7).shape == (7, 5)


@networks
def test_traversals_keep_the_noise_fixed(network):
    model = make(network).eval()
    z = model.sample(1).repeat(6, 1)
    images = model.decode(z)
    assert all(torch.equal(images[0], image) for image in images[1:])
    assert torch.equal(InfoGAN((1, 64, 64)).fixed_noise, model.fixed_noise)
    assert "fixed_noise" in model.state_dict()


@networks
def test_images_come_from_the_running_average_of_the_generator(network):
    model = make(network, ema=0.75)
    z, steps = model.sample(512), []
    for step in range(2):
        model.train().train_step(torch.rand(8, 1, 64, 64), step)
        steps.append(copy.deepcopy(model.generator.state_dict()))
    for name, averaged in model.averaged.module.named_parameters():
        average = 0.75 * steps[0][name] + 0.25 * steps[1][name]  # the first step starts it
        torch.testing.assert_close(averaged.data, average)
    with torch.no_grad():  # statistics of other weights, as those of a G that moves fast
        for name, buffer in model.averaged.named_buffers():
            if "running" in name:
                buffer.fill_(100)
    noise = model.sample_noise(512)
    images = model.eval()._draw(z, noise)
    model.averaged.train()  # batch norm by this very batch
    assert (images - model._draw(z, noise)).abs().mean() < 0.25 * images.std(0).mean()


@networks
@pytest.mark.parametrize("channels", [1, 3])
def test_encode_and_decode(network, channels):
    model = make(network, (channels, 64, 64), continuous=2, categorical=(4, 3))
    x = torch.rand(16, channels, 64, 64)
    model.train_step(x, 0)
    codes, images = model.eval().encode(x), model.decode(model.encode(x))
    assert images.shape == x.shape
    assert 0 <= images.min() <= images.max() <= 1
    # the code of an image does not depend on its neighbours
    torch.testing.assert_close(model.encode(x[:1]), codes[:1], rtol=1e-4, atol=1e-5)
    low = {"seed": -1.0, "sn": 0.0, "broadcast": 0.0}[network]
    q = model.discriminator(x * (1 - low) + low)[1].detach()  # 2 + 4 + 3 columns
    expected = [q[:, :2], q[:, 2:6].argmax(1, keepdim=True), q[:, 6:].argmax(1, keepdim=True)]
    torch.testing.assert_close(codes, torch.cat(expected, 1))
    raw = model.generator(model._inputs(codes, model.fixed_noise.expand(16, -1))).detach()
    torch.testing.assert_close(images, (raw - low) / (1 - low))


@networks
def test_information_is_repeatable_and_leaves_the_model_alone(network):
    model, x = make(network).eval(), torch.rand(64, 1, 64, 64)
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    nats = model.information(x)
    assert torch.equal(nats, model.information(x))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert nats.tolist() == pytest.approx([-0.176] * 5, abs=0.25)  # an untrained Q knows nothing


def test_a_model_without_codes_is_refused():
    with pytest.raises(ValueError, match=r"continuous: 0 is not allowed without model.categorical"):
        make(continuous=0)


HEALTHY = {"d_real": 0.6, "d_fake": 0.7, "g_loss": 0.9, "std_fake": 0.2, "std_real": 0.25}


@pytest.mark.parametrize(
    ("terms", "kinds"),
    [
        ({}, []),
        ({"std_fake": 0.05}, ["mode collapse"]),
        ({"d_real": 0.999, "d_fake": 1.0, "g_loss": 9.0}, ["the discriminator has won"]),
        ({"d_real": 1.0, "d_fake": 0.0}, ["dead discriminator"]),
        ({"d_real": 0.999, "d_fake": 1.0, "g_loss": 2.0}, []),
    ],
)
def test_warnings(terms, kinds):
    texts = make("sn").warnings(HEALTHY | terms)
    assert [text.partition(":")[0] for text in texts] == kinds
