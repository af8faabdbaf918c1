"""InfoGAN's training: who trains what, closed forms, the contrastive phase."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from models import InfoGAN
from models.fast import accelerate
from models.gan_networks import GAN_NETWORKS

VARIANTS = [
    {"continuous": 3, "categorical": (3, 4), "noise": 2},
    {"continuous": 0, "categorical": (5,), "noise": 0},
    {"network": "broadcast", "cr_weight": 1.0, "categorical": (2,), "instance_noise": 0.2},
    {"r1": 0.5, "r1_every": 2, "ema": 0.9},
    {"network": "broadcast", "r1": 0.5, "r1_every": 2},
]
networks = pytest.mark.parametrize("network", GAN_NETWORKS)


def make(network="seed", **settings):
    torch.manual_seed(0)
    return InfoGAN((1, 64, 64), network=network, **settings)


def squares(n=8):
    """Images in {0, 1}: one white square each, at different places."""
    x = torch.zeros(n, 1, 64, 64)
    for i in range(n):
        row, column = 8 + 5 * (i % 8), 8 + 3 * (i % 11)
        x[i, :, row : row + 12, column : column + 12] = 1
    return x


def train(model, steps, n=8):
    model.train()
    for step in steps:
        torch.manual_seed(1000 + step)
        terms = model.train_step(squares(n), step)
    return terms


def weights(*modules):
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(before, *modules):
    return all(torch.equal(a, b) for a, b in zip(before, weights(*modules), strict=True))


def gradients(module):
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def generate(model, n=8):
    """Codes and images of them."""
    z = model.sample(n)
    return z, model.generator(model._inputs(z, model.sample_noise(n)))


@networks
def test_each_step_moves_only_its_own_parameters(network):
    model = make(network)
    d, q_with_g = model.discriminator, network == "seed"
    z, fake = generate(model)
    before_g, before_d = weights(model.generator), weights(d.trunk, d.d_head)
    before_q = weights(d.q_head)
    model._step_d(model._to_network(squares()), fake.detach(), z)
    assert same(before_g, model.generator)
    assert gradients(model.generator) == 0
    assert same(before_q, d.q_head) == (gradients(d.q_head) == 0) == q_with_g
    assert not same(before_d, d.trunk, d.d_head)

    before_d, before_q = weights(d.trunk, d.d_head), weights(d.q_head)
    of_d = [p.grad.clone() for p in d.trunk.parameters()]
    model._step_g(fake, z, torch.zeros(()))
    assert not same(before_g, model.generator)
    assert same(before_d, d.trunk, d.d_head)
    assert all(torch.equal(g, p.grad) for g, p in zip(of_d, d.trunk.parameters(), strict=True))
    assert same(before_q, d.q_head) != q_with_g


@networks
def test_every_parameter_has_exactly_one_optimizer(network):
    model = make(network, cr_weight=1.0)
    groups = [group for o in model.optimizers.values() for group in o.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    rates = {name: o.defaults["lr"] for name, o in model.optimizers.items()}
    assert rates == {"g": 1e-3, "d": 2e-4, "cr": 2e-4}


@networks
@pytest.mark.parametrize("info_weight", [0.0, 1.0])
def test_the_loss_of_q_alone_trains_the_shared_trunk_and_the_generator(network, info_weight):
    model = make(network, info_weight=info_weight)
    d = model.discriminator
    if network == "sn":  # zero divided by its norm
        d.d_head = nn.Linear(128, 1)
    nn.init.zeros_(d.d_head.weight)  # D answers the same for all: all gradients are Q's
    z, fake = generate(model)
    model._step_d(squares(), fake.detach(), z)
    assert (gradients(d.trunk) > 0) == (info_weight > 0)
    nn.init.zeros_(d.d_head.weight)  # the step has moved it
    model._step_g(fake, z, torch.zeros(()))
    assert (gradients(model.generator) > 0) == (info_weight > 0)


def test_losses_and_accuracies_in_closed_form():
    model = make(info_weight=0.0)
    z, fake = generate(model)
    head, terms = model.discriminator.d_head, {}
    d_step = functools.partial(model._step_d, squares(), fake.detach(), z)
    for step in (d_step, functools.partial(model._step_g, fake, z, torch.zeros(()))):
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, 0.3)  # every logit is 0.3
        terms |= step()
    log_real, log_fake = -math.log(1 + math.exp(-0.3)), -math.log(1 + math.exp(0.3))
    assert terms["d_loss"].item() == pytest.approx(-log_real - log_fake, rel=1e-5)
    assert (float(terms["d_real"]), float(terms["d_fake"])) == (1, 0)
    assert terms["g_loss"].item() == pytest.approx(-log_real, rel=1e-5)


@networks
def test_the_penalty_of_d_in_closed_form(network):
    """A linear D has one slope everywhere: the term is its square, the loss half gamma of it."""
    model, x = make(network, r1=4.0, r1_every=3, info_weight=0.0), squares()
    slope = torch.randn(1, 64 * 64, generator=torch.Generator().manual_seed(0)) / 64
    d = model.discriminator
    d.trunk, d.d_head, d.q_head = nn.Flatten(), nn.Linear(64 * 64, 1), nn.Linear(64 * 64, 5)
    model.optimizers["d"].param_groups[0]["params"] = list(d.d_head.parameters())
    fake, z, results = torch.rand(8, 1, 64, 64), model.sample(8), []
    for penalise in (False, True):
        d.d_head.weight.data.copy_(slope)  # the last step has moved it
        nn.init.zeros_(d.d_head.bias)
        term = model._step_d(x, fake, z, penalise)["r1"].item()
        results.append((term, d.d_head.weight.grad.clone()))
    (term, without), (penalty, gradient) = results
    assert term == 0
    assert penalty == pytest.approx(3 * float(slope.square().sum()), rel=1e-5)
    torch.testing.assert_close(gradient - without, 3 * 4.0 * slope, rtol=1e-3, atol=1e-5)


def test_running_statistics_of_d_are_those_of_real_images():
    model = make()
    reference = copy.deepcopy(model.discriminator)
    train(model, range(1))
    reference(2 * squares() - 1)  # what D sees first, before any weight moves
    buffers = dict(model.discriminator.trunk.named_buffers())
    running = [name for name in buffers if "running" in name]
    assert len(running) == 8
    for name in running:
        torch.testing.assert_close(buffers[name], reference.trunk.get_buffer(name))


def test_instance_noise_is_on_all_that_d_sees(monkeypatch):
    """On fakes as on real images: else D could tell them by their noise."""
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    seen = []
    for std in (0.0, 0.5):
        model, inputs = make(instance_noise=std), []
        model.discriminator.register_forward_pre_hook(lambda _, x, to=inputs: to.append(x[0]))
        for optimizer in model.optimizers.values():  # the same images with and without
            monkeypatch.setattr(optimizer, "step", lambda: None)
        train(model, range(1))
        seen.append(inputs)
    assert len(seen[0]) == 3
    for clean, noisy in zip(*seen, strict=True):
        torch.testing.assert_close(noisy - clean, torch.full_like(clean, 0.5))


@pytest.mark.parametrize("settings", [{"network": n} for n in GAN_NETWORKS] + VARIANTS, ids=str)
def test_three_steps(settings):
    model = make(**settings)
    before = weights(model)
    codes = [f"mi_{j}" for j in range(model.latent_dim)]
    names = ["d_loss", "d_real", "d_fake"] + ["r1"] * bool(model.r1)
    names += ["g_loss", "q_loss", "mi", *codes]
    names += ["cr"] * bool(model.cr_weight) + ["std_fake", "std_real"]
    for step in range(3):
        terms = train(model, [step])
        assert list(terms) == names
        assert all(t.ndim == 0 and t.isfinite() and not t.requires_grad for t in terms.values())
        assert float(terms["mi"]) == pytest.approx(sum(float(terms[c]) for c in codes), abs=1e-4)
        assert model.r1 == 0 or (terms["r1"] > 0) == (step % 2 == 0)  # r1_every
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    real = float(model._to_network(squares()).std(0, unbiased=False).mean())
    assert float(terms["std_real"]) == pytest.approx(real, rel=1e-4)


@pytest.mark.parametrize("network", ["sn", "broadcast"])  # in seed, copies sum gradients in bf16
def test_bf16_never_computes_with_weights_of_before_an_update(network, monkeypatch):
    """Autocast keeps bf16 copies of weights; a step without such copies is bit-identical."""
    states, autocast = [], torch.autocast
    for cached in (True, False):
        monkeypatch.setattr(torch, "autocast", functools.partial(autocast, cache_enabled=cached))
        model = make(network)
        model.dtype = torch.bfloat16
        terms = train(model, range(2))
        states.append(weights(model))
    assert all(map(torch.equal, *states))
    exact = train(make(network), range(2))
    for name in ("d_loss", "g_loss", "q_loss"):
        assert terms[name].dtype == torch.float32
        assert float(terms[name]) == pytest.approx(float(exact[name]), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "steps"), [("seed", 40), ("sn", 100)])
def test_training_puts_information_into_the_codes(network, steps):
    model = accelerate(make(network, continuous=2, noise=1, instance_noise=0.5))
    last = [train(model, [step], 32) for step in range(steps)][-steps // 2 :]
    mean = {name: sum(float(terms[name]) for terms in last) / len(last) for name in last[0]}
    assert mean["mi"] > 0.3  # untrained: twice -0.18
    assert mean["std_fake"] > 0.3 * mean["std_real"]


def test_a_pair_shares_one_code_and_the_noise():
    model = make("broadcast", continuous=3, categorical=(50,), noise=4, cr_weight=1.0)
    inputs, shared = model._pairs(64)
    first, second = inputs.chunk(2)
    codes = [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 53)]
    equal = torch.stack([(first[:, c] == second[:, c]).all(1) for c in codes], 1)
    assert equal[torch.arange(64), shared].all()
    assert set(shared.tolist()) == {0, 1, 2, 3}
    assert not equal[:, :3].sum() > 64  # no second continuous code agrees
    assert torch.equal(first[:, 53:], second[:, 53:])


def test_contrast_starts_at_its_step_at_chance():
    model, plain = make("broadcast", cr_weight=2.0, cr_start=3), make("broadcast")
    plain.load_state_dict(model.state_dict(), strict=False)
    before = weights(model.pair_discriminator)
    assert train(model, range(3), 32)["cr"] == 0
    assert same(before, model.pair_discriminator)
    train(plain, range(3), 32)
    assert same(weights(plain.generator), model.generator)  # until then it is plain InfoGAN
    chance = model._contrast(torch.rand(400, 1, 64, 64), torch.arange(200) % 5)
    assert chance.item() == pytest.approx(math.log(5), abs=0.3)
    assert train(model, range(3, 4), 32)["cr"] > 0
    assert not same(before, model.pair_discriminator)


def test_contrast_trains_the_generator_and_never_d():
    generators = []
    for cr_weight in (0.0, 1.0):
        model = make("broadcast", cr_weight=1.0)
        model.cr_weight = cr_weight
        pairs, shared = model._pairs(8)
        images = model.generator(pairs)
        before = weights(model.pair_discriminator, model.discriminator.trunk)
        model._step_g(images[:8], model.sample(8), model._contrast(images, shared))
        assert same(before, model.pair_discriminator, model.discriminator.trunk)
        generators.append(model.generator)
    assert not same(weights(generators[0]), generators[1])
