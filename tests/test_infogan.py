"""InfoGAN: the tables layer by layer, the bound in closed form, who trains what, exact resume."""

import copy
import io
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.fast import Conv2d
from models.gan_networks import GAN_NETWORKS
from models.infogan import InfoGAN, uniform_information

NETWORKS = list(GAN_NETWORKS)
VARIANTS = [
    {},
    {"continuous": 3, "categorical": (3, 4), "noise": 2, "q_std": "learned"},
    {"continuous": 0, "categorical": (5,), "noise": 0},
    {"cr_weight": 2.0, "instance_noise": 0.2, "label_smoothing": 0.1, "g_steps": 2},
    {"cr_weight": 1.0, "categorical": (2,), "cr_start": 2, "instance_noise_steps": 2},
    {"r1": 0.5, "r1_every": 2, "ema": 0.9},
]


def make(network: str, channels: int = 1, seed: int = 0, **settings) -> InfoGAN:
    torch.manual_seed(seed)
    return InfoGAN((channels, 64, 64), network=network, **settings)


def squares(n: int = 8, channels: int = 1) -> torch.Tensor:
    """Images (n, channels, 64, 64) in {0, 1}: one white square each, at different places."""
    x = torch.zeros(n, channels, 64, 64)
    for i in range(n):
        row, column = 8 + 5 * (i % 8), 8 + 3 * (i % 11)
        x[i, :, row : row + 12, column : column + 12] = 1
    return x


def train(model: InfoGAN, steps: range, x: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    x = squares() if x is None else x
    model.train()
    for step in steps:
        torch.manual_seed(1000 + step)
        terms = model.train_step(x, step)
    return terms


def weights(*modules: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def same(before: list[torch.Tensor], *modules: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, weights(*modules), strict=True))


def gradients(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def row_shapes(rows: nn.Sequential, x: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple((x := row(x)).shape[1:]) for row in rows]


# --- the tables


@pytest.mark.parametrize("channels", [1, 3])
def test_seed_network_is_the_table(channels):
    model = make("seed", channels, continuous=5, noise=5)
    generator = [(256,), (256,), (128, 4, 4), (64, 8, 8), (64, 16, 16), (32, 32, 32)]
    assert row_shapes(model.generator, torch.randn(2, 10)) == [*generator, (channels, 64, 64)]
    trunk = [(64, 31, 31), (128, 14, 14), (256, 6, 6), (256, 3, 3), (256, 2, 2)]
    x = torch.randn(2, channels, 64, 64)
    assert row_shapes(model.discriminator.trunk, x) == trunk
    features = model.discriminator.trunk(x)
    assert model.discriminator.d_head(features).shape == (2, 1, 1, 1)
    assert row_shapes(model.discriminator.q_head, features) == [(128, 1, 1), (5, 1, 1)]
    convolutions = [m for m in model.discriminator.trunk.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.kernel_size[0], m.stride[0], m.padding[0]) for m in convolutions] == [
        (4, 2, 0),
        (4, 2, 0),
        (4, 2, 0),
        (4, 1, 0),
        (4, 1, 1),
    ]
    kinds = [[type(layer) for layer in row] for row in model.discriminator.trunk]
    assert kinds[0] == [Conv2d, nn.LeakyReLU]
    assert all(kind == [Conv2d, nn.BatchNorm2d, nn.LeakyReLU] for kind in kinds[1:])
    assert [type(row[-1]) for row in model.generator] == [nn.ReLU] * 6 + [nn.Tanh]


@pytest.mark.parametrize("channels", [1, 3])
def test_sn_network_is_the_table(channels):
    model = make("sn", channels, continuous=5, noise=5)
    generator = [(128,), (64, 4, 4), (64, 8, 8), (32, 16, 16), (32, 32, 32)]
    assert row_shapes(model.generator, torch.randn(2, 10)) == [*generator, (channels, 64, 64)]
    x = torch.rand(2, channels, 64, 64)
    trunk = [(32, 32, 32), (32, 16, 16), (64, 8, 8), (64, 4, 4), (1024,), (128,)]
    assert row_shapes(model.discriminator.trunk, x) == trunk
    assert row_shapes(model.discriminator.q_head, torch.randn(2, 128)) == [(128,), (5,)]
    logits, q = model.discriminator(x)
    assert logits.shape == (2,)
    assert q.shape == (2, 5)


def test_sn_network_is_normalised_in_every_layer_of_d_and_q():
    model = make("sn")
    layers = [m for m in model.discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 8
    for iterations, tolerance in ((0, 0.2), (100, 0.02)):
        for _ in range(iterations):
            model.discriminator(torch.rand(1, 1, 64, 64))
        for layer in layers:
            sigma = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
            assert float(sigma) == pytest.approx(1, abs=tolerance)


def test_products_on_a_vector_are_the_upconvs_of_the_table():
    generator = make("seed").generator.eval()
    h = torch.randn(3, 256)
    product = generator[2][0].weight  # (128 * 4 * 4, 256)
    upconv = F.conv_transpose2d(
        h[:, :, None, None], product.T.reshape(256, 128, 4, 4), stride=2
    )  # (3, 128, 4, 4): the stride changes nothing on a 1x1 map
    torch.testing.assert_close(generator[2][1](generator[2][0](h)), upconv, rtol=1e-4, atol=1e-5)


def test_small_network_is_the_same_without_the_norm():
    sizes = {name: sum(p.numel() for p in make(name).parameters()) for name in ("sn", "small")}
    assert sizes["sn"] == sizes["small"]
    assert not any("parametrizations" in name for name, _ in make("small").named_parameters())


@pytest.mark.parametrize("channels", [1, 3])
def test_broadcast_network_is_the_table(channels):
    model = make("broadcast", channels, continuous=5, noise=5)
    generator = [(128, 16, 16), (64, 16, 16), (64, 16, 16), (32, 32, 32), (channels, 64, 64)]
    assert row_shapes(model.generator, torch.randn(2, 10)) == generator
    kinds = [[type(layer) for layer in row] for row in model.generator]
    assert all(kind[1:] == [nn.BatchNorm2d, nn.LeakyReLU] for kind in kinds[1:-1])
    sizes = [sum(p.numel() for p in row.parameters()) for row in model.generator]
    assert sizes[0] == 10 * 128 + 128 + 2 * 128
    assert not any("parametrizations" in name for name, _ in model.named_parameters())


def test_initial_weights_are_the_papers_or_the_layers_own():
    for network in NETWORKS:
        layer = make(network).discriminator.trunk[-1][0]  # a Linear or a Conv2d, 1,024 inputs or up
        own = 1 / math.sqrt(3 * layer.weight[0].numel())  # uniform within 1 / sqrt(inputs)
        weight = layer.parametrizations.weight.original if network == "sn" else layer.weight
        wanted = GAN_NETWORKS[network].init_std or own
        assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.02)


def test_seed_size_of_the_networks():
    model = make("seed")
    rows = [10 * 256, 256 * 256, 256 * 128 * 16, 128 * 64 * 16, 64 * 64 * 16, 64 * 32 * 16]
    norms = [2 * width for width in (256, 256, 128, 64, 64, 32)]
    total = sum(rows) + sum(norms) + 32 * 16 + 1
    assert sum(p.numel() for p in model.generator.parameters()) == total == 823_873
    rows = [64 * 16 + 64, 64 * 128 * 16, 128 * 256 * 16, 256 * 256 * 16, 256 * 256 * 16]
    norms = [2 * width for width in (128, 256, 256, 256)]
    heads = [256 * 4 + 1, 256 * 128 * 4 + 2 * 128, 128 * 5 + 5]
    total = sum(rows) + sum(norms) + sum(heads)
    assert sum(p.numel() for p in model.discriminator.parameters()) == total == 2_888_390


# --- the information bound


def test_bound_of_a_uniform_code_in_closed_form():
    # a Q that predicts 0 has error 1/3 and a bound below 0: ln 2 - ln(2 pi e / 3) / 2
    assert float(uniform_information(torch.tensor(1 / 3))) == pytest.approx(-0.176486, abs=1e-5)
    # entropy less cross entropy, both by torch.distributions
    torch.manual_seed(0)
    code, std = torch.rand(200_000) * 2 - 1, 0.1
    mean = code + std * torch.randn_like(code)
    expected = math.log(2) + float(Normal(mean, std).log_prob(code).mean())
    bound = uniform_information((code - mean).square().mean())
    assert float(bound) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("q_std", ["fixed", "learned"])
def test_q_loss_is_the_negative_log_likelihood(q_std):
    model = make("sn", continuous=2, categorical=(3,), q_std=q_std)
    torch.manual_seed(1)
    z, q = model.sample(64), torch.randn(64, sum(model.q_sizes))
    mean, std, logits = q[:, :2], torch.ones(64, 2), q[:, 2:]
    if q_std == "learned":
        std, logits = q[:, 2:4].exp(), q[:, 4:]
    gaussian = -Normal(mean, std).log_prob(z[:, :2]).mean(0)
    category = -logits.log_softmax(1)[torch.arange(64), z[:, 2].long()].mean()
    loss, bound = model._code_losses(q, z)
    torch.testing.assert_close(loss, torch.cat([gaussian, category[None]]))
    expected = torch.tensor([math.log(2), math.log(2), math.log(3)]) - loss
    if q_std == "fixed":
        expected[:2] = uniform_information((z[:, :2] - mean).square().mean(0))
    torch.testing.assert_close(bound, expected)


def test_bound_of_a_category_runs_from_0_to_its_entropy():
    model = make("sn", continuous=0, categorical=(4,))
    z = model.sample(100)
    certain = 1000.0 * (z == torch.arange(4)).float()
    assert float(model._code_losses(certain, z)[1]) == pytest.approx(math.log(4), abs=1e-6)
    assert float(model._code_losses(torch.zeros(100, 4), z)[1]) == pytest.approx(0, abs=1e-6)


def test_a_learned_deviation_cannot_run_away():
    model = make("sn", continuous=1, q_std="learned")
    z = torch.zeros(4, 1)
    _, bound = model._code_losses(torch.tensor([[0.0, -50.0]]).expand(4, 2), z)
    assert float(bound) == pytest.approx(math.log(2) - 0.5 * math.log(2 * math.pi) - math.log(0.01))


@pytest.mark.parametrize("network", NETWORKS)
def test_information_is_repeatable_and_leaves_the_model_alone(network):
    model = make(network).eval()
    state = copy.deepcopy(model.state_dict())
    x = squares(64)
    random_state = torch.get_rng_state()
    first = model.information(x)
    assert torch.equal(first, model.information(x))
    assert torch.equal(random_state, torch.get_rng_state())
    assert not torch.equal(first, model.information(0 * x))  # other images, other draws
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    # an untrained Q knows nothing: the bound of a constant prediction
    assert first.shape == (5,)
    assert first.numpy() == pytest.approx([-0.176] * 5, abs=0.25)


# --- who trains what


@pytest.mark.parametrize("network", NETWORKS)
def test_each_step_moves_only_its_own_parameters(network):
    model = make(network)
    d, q_with_g = model.discriminator, GAN_NETWORKS[network].q_owner == "g"
    real, z = model._to_network(squares()), model.sample(8)
    fake = model.generator(model._inputs(z, model.sample_noise(8)))
    before_g, before_d = weights(model.generator), weights(d.trunk, d.d_head)
    before_q = weights(d.q_head)

    model._step_d(real, fake.detach(), z)
    assert same(before_g, model.generator)
    assert gradients(model.generator) == 0
    assert same(before_q, d.q_head) == q_with_g
    assert (gradients(d.q_head) == 0) == q_with_g
    assert not same(before_d, d.trunk, d.d_head)

    before_d, before_q = weights(d.trunk, d.d_head), weights(d.q_head)
    of_d = [p.grad.clone() for p in d.trunk.parameters()]
    model._step_g(fake, z, torch.zeros(()))
    assert not same(before_g, model.generator)
    assert same(before_d, d.trunk, d.d_head)
    assert all(torch.equal(g, p.grad) for g, p in zip(of_d, d.trunk.parameters(), strict=True))
    assert same(before_q, d.q_head) != q_with_g


def test_every_parameter_has_exactly_one_optimizer():
    for network in NETWORKS:
        model = make(network, cr_weight=1.0)
        held = [
            id(p)
            for optimizer in model.optimizers.values()
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        q = {id(p) for p in model.discriminator.q_head.parameters()}
        owner = model.optimizers[GAN_NETWORKS[network].q_owner]
        assert q <= {id(p) for p in owner.param_groups[0]["params"]}
        assert [o.param_groups[0]["lr"] for o in model.optimizers.values()] == [1e-3, 2e-4, 2e-4]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("info_weight", "trains"), [(0.0, False), (1.0, True)])
def test_q_loss_alone_trains_the_shared_trunk_and_the_generator(network, info_weight, trains):
    model = make(network, info_weight=info_weight)
    for parameter in model.discriminator.d_head.parameters():
        if parameter.ndim > 1:
            parameter.data.zero_()  # D answers the same for all: no gradient but Q's comes back
    if network == "sn":  # zero divided by its norm
        model.discriminator.d_head = nn.Linear(128, 1)
        nn.init.zeros_(model.discriminator.d_head.weight)
    z = model.sample(8)
    fake = model.generator(model._inputs(z, model.sample_noise(8)))
    model._step_d(squares(), fake.detach(), z)
    assert (gradients(model.discriminator.trunk) > 0) == trains
    nn.init.zeros_(model.discriminator.d_head.weight)  # the step has moved it
    model._step_g(fake, z, torch.zeros(()))
    assert (gradients(model.generator) > 0) == trains


def test_losses_and_accuracies_in_closed_form():
    model = make("seed", info_weight=0.0, label_smoothing=0.1)
    nn.init.zeros_(model.discriminator.d_head.weight)
    nn.init.constant_(model.discriminator.d_head.bias, 0.3)  # every logit is .3
    z = model.sample(8)
    fake = model.generator(model._inputs(z, model.sample_noise(8)))
    log_real, log_fake = math.log(1 / (1 + math.exp(-0.3))), math.log(1 / (1 + math.exp(0.3)))
    terms = model._step_d(squares(), fake.detach(), z)
    expected = -(0.9 * log_real + 0.1 * log_fake) - log_fake
    assert terms["d_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert (float(terms["d_real"]), float(terms["d_fake"])) == (1, 0)
    nn.init.zeros_(model.discriminator.d_head.weight)
    nn.init.constant_(model.discriminator.d_head.bias, 0.3)
    terms = model._step_g(fake, z, torch.zeros(()))
    assert terms["g_loss"].item() == pytest.approx(-log_real, rel=1e-5)


def test_real_and_fake_in_one_forward_is_exact_without_batch_norm_only():
    torch.manual_seed(0)
    real, fake = squares(), torch.rand(8, 1, 64, 64)
    for network in NETWORKS:
        model, exact = make(network), network != "seed"
        assert model.joint == exact
        d = model.discriminator
        if network == "sn":
            d.eval()  # so that both ways see the same power iteration
        together = d(torch.cat([real, fake]))[0]
        apart = torch.cat([d(real)[0], d(fake)[0]])
        assert torch.allclose(together, apart, atol=1e-6) == exact


@pytest.mark.parametrize("network", NETWORKS)
def test_the_penalty_of_d_in_closed_form(network):
    """A linear D has one slope everywhere: the term is its square, the loss half gamma of it."""
    model, x = make(network, r1=4.0, r1_every=3, info_weight=0.0), squares()
    slope = torch.randn(1, 64 * 64, generator=torch.Generator().manual_seed(0)) / 64
    d = model.discriminator
    d.trunk, d.d_head, d.q_head = nn.Flatten(), nn.Linear(64 * 64, 1), nn.Linear(64 * 64, 5)
    optimizer = model.optimizers["d"]
    optimizer.param_groups[0]["params"] = list(d.d_head.parameters())
    fake, z = torch.rand(8, 1, 64, 64), model.sample(8)

    def gradient(penalise: bool) -> tuple[torch.Tensor, float]:
        d.d_head.weight.data.copy_(slope)  # the last step has moved it
        nn.init.zeros_(d.d_head.bias)
        term = model._step_d(x, fake, z, penalise)["r1"]
        return d.d_head.weight.grad.clone(), term.item()

    (with_it, term), (without, nothing) = gradient(True), gradient(False)
    assert nothing == 0
    assert term == pytest.approx(3 * float(slope.square().sum()), rel=1e-5)
    torch.testing.assert_close(with_it - without, 3 * 4.0 * slope, rtol=1e-3, atol=1e-5)


def test_the_penalty_is_taken_every_few_steps():
    model = make("broadcast", r1=1.0, r1_every=3)
    terms = [float(train(model, range(step, step + 1))["r1"]) for step in range(7)]
    assert [term > 0 for term in terms] == [step % 3 == 0 for step in range(7)]


def test_running_statistics_of_d_are_those_of_real_images():
    model, x = make("seed"), squares()
    reference = copy.deepcopy(model.discriminator)
    train(model, range(1), x)
    reference(2 * x - 1)  # what D sees first, before any weight moves
    own = dict(model.discriminator.named_buffers())
    names = [name for name in own if "running" in name and "trunk" in name]
    assert len(names) == 8
    for name in names:
        torch.testing.assert_close(own[name], reference.get_buffer(name))


# --- training


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", VARIANTS, ids=range(len(VARIANTS)))
def test_three_steps(network, channels, settings):
    model = make(network, channels, **settings)
    x = squares(4, channels)
    before = weights(model)
    every = [train(model, range(step, step + 1), x) for step in range(3)]
    for terms in every:
        names = ["d_loss", "d_real", "d_fake"] + ["r1"] * bool(settings.get("r1"))
        names += ["g_loss", "q_loss", "mi"]
        names += [f"mi_{j}" for j in range(model.latent_dim)]
        names += ["cr"] * bool(settings.get("cr_weight")) + ["std_fake", "std_real"]
        assert list(terms) == names
        assert all(t.ndim == 0 and t.isfinite() and not t.requires_grad for t in terms.values())
        by_code = sum(float(terms[f"mi_{j}"]) for j in range(model.latent_dim))
        assert float(terms["mi"]) == pytest.approx(by_code, abs=1e-4)
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    names = [name for name, _ in model.named_parameters()]
    assert all(moved), [name for name, m in zip(names, moved, strict=True) if not m]
    real = float(model._to_network(x).std(0, unbiased=False).mean())
    assert float(terms["std_real"]) == pytest.approx(real, rel=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_resume_is_exact(network):
    settings = {"cr_weight": 2.0, "cr_start": 1, "instance_noise": 0.3, "instance_noise_steps": 9}
    settings |= {"ema": 0.9, "r1": 1.0, "r1_every": 3}
    straight = make(network, **settings)
    train(straight, range(4))
    stopped = make(network, **settings)
    train(stopped, range(2))
    file = io.BytesIO()
    optimizers = {name: o.state_dict() for name, o in stopped.optimizers.items()}
    torch.save({"model": stopped.state_dict(), "optimizers": optimizers}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make(network, seed=7, **settings)
    resumed.load_state_dict(saved["model"])
    for name, optimizer in resumed.optimizers.items():
        optimizer.load_state_dict(saved["optimizers"][name])
    terms = train(resumed, range(2, 4))
    expected, found = straight.state_dict(), resumed.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert terms["cr"] > 0
    for name, optimizer in straight.optimizers.items():
        pairs = zip(
            optimizer.state_dict()["state"].values(),
            resumed.optimizers[name].state_dict()["state"].values(),
            strict=True,
        )
        assert all(torch.equal(a[k], b[k]) for a, b in pairs for k in a)


class Copies(TorchDispatchMode):
    """Follows bf16 copies of weights; `stale` are operators that took one made before an update."""

    def __init__(self):
        super().__init__()
        self.clock, self.moved, self.copies, self.stale, self.used = 0, {}, {}, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.clock += 1
        taken = {x.data_ptr() for x in tree_leaves(args) if isinstance(x, torch.Tensor)}
        for source, when in (self.copies[x] for x in taken & self.copies.keys()):
            self.used += source in self.moved
            if self.moved.get(source, 0) > when:
                self.stale.append(str(func))
        result = func(*args, **(kwargs or {}))
        if "_fused_adam_" in str(func):
            self.moved |= {x.data_ptr(): self.clock for x in args[0]}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.data_ptr() not in taken:  # new memory, not a view
                self.copies.pop(x.data_ptr(), None)
                if "_to_copy" in str(func) and x.dtype == torch.bfloat16:
                    self.copies[x.data_ptr()] = args[0].data_ptr(), self.clock
        return result


@pytest.mark.parametrize("network", NETWORKS)
def test_bf16_never_computes_with_weights_of_before_an_update(network):
    """Autocast keeps bf16 copies of weights."""
    model = make(network, g_steps=2, cr_weight=1.0)
    model.dtype = torch.bfloat16
    with Copies() as copies:
        train(model, range(1))
    assert copies.used > 10
    assert copies.stale == []


def test_bf16_losses_are_close_to_fp32():
    terms = []
    for dtype in (torch.float32, torch.bfloat16):
        model = make("sn")
        model.dtype = dtype
        terms.append(train(model, range(1)))
    for name in ("d_loss", "g_loss", "q_loss"):
        assert terms[1][name].dtype == torch.float32
        assert float(terms[1][name]) == pytest.approx(float(terms[0][name]), rel=0.02)


def test_instance_noise_falls_to_nothing():
    settings = {"instance_noise": 0.5, "instance_noise_steps": 10}
    for step, equal in ((10, True), (9, False), (0, False)):
        noisy, clean = make("sn", **settings), make("sn")
        assert (
            train(noisy, range(step, step + 1))["d_loss"]
            == train(clean, range(step, step + 1))["d_loss"]
        ) == equal


def test_instance_noise_is_on_all_that_d_sees(monkeypatch):
    """On fakes as on real images: else D could tell them by their noise."""
    seen = {}

    def inputs_of(std):
        model = make("seed", instance_noise=std)
        model.discriminator.register_forward_pre_hook(
            lambda module, images: seen.setdefault(std, []).append(images[0].detach().float())
        )
        monkeypatch.setattr(torch, "randn_like", lambda images: torch.full_like(images, 1.0))
        for optimizer in model.optimizers.values():  # the same images with and without
            monkeypatch.setattr(optimizer, "step", lambda: None)
        train(model, range(1))

    inputs_of(0.0), inputs_of(0.5)
    assert len(seen[0.5]) == 3
    for noisy, clean in zip(seen[0.5], seen[0.0], strict=True):
        torch.testing.assert_close(noisy - clean, torch.full_like(clean, 0.5))


def test_one_more_generator_step_moves_only_g():
    one, two = make("sn"), make("sn", g_steps=2)
    train(one, range(1)), train(two, range(1))
    state = dict(one.discriminator.named_parameters())
    assert all(torch.equal(p, state[n]) for n, p in two.discriminator.named_parameters())
    assert not same(weights(one.generator), two.generator)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "steps", "settings"),
    [("seed", 40, {"instance_noise": 0.5}), ("sn", 60, {"g_steps": 2, "instance_noise": 0.3})],
)
def test_training_puts_information_into_the_codes(network, steps, settings):
    model = make(network, continuous=2, noise=1, **settings)
    x = squares(32)
    last = [train(model, range(s, s + 1), x) for s in range(steps)][-steps // 2 :]
    mean = {name: sum(float(terms[name]) for terms in last) / len(last) for name in last[0]}
    assert mean["mi"] > 0.3  # untrained: twice -.18
    assert mean["std_fake"] > 0.3 * mean["std_real"]


# --- the contrastive phase


def test_a_pair_shares_one_code_and_the_noise():
    model = make("sn", continuous=3, categorical=(50,), noise=4, cr_weight=1.0)
    torch.manual_seed(0)
    inputs, shared = model._pairs(64)
    first, second = inputs.chunk(2)
    codes = [slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 53)]
    equal = torch.stack([(first[:, c] == second[:, c]).all(1) for c in codes], 1)
    assert equal[torch.arange(64), shared].all()
    assert set(shared.tolist()) == {0, 1, 2, 3}
    assert not equal[:, :3].sum() > 64  # no second continuous code agrees
    assert torch.equal(first[:, 53:], second[:, 53:])


@pytest.mark.parametrize("network", NETWORKS)
def test_images_come_from_the_running_average_of_the_generator(network):
    model = make(network, ema=0.75)
    z, steps = model.sample(4), []
    for step in range(2):
        train(model, [step])
        steps.append(copy.deepcopy(model.generator.state_dict()))
    model.eval()
    found = model.decode(z)
    assert not torch.equal(found, make(network).eval().decode(z))
    for name, averaged in model.averaged.module.named_parameters():
        average = 0.75 * steps[0][name] + 0.25 * steps[1][name]  # the first step starts it
        torch.testing.assert_close(averaged.data, average)
    model.generator.load_state_dict(model.averaged.module.state_dict())
    model.averaged = None
    torch.testing.assert_close(model.decode(z), found)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_averaged_generator_draws_what_its_own_batch_statistics_say(network):
    model = make(network, ema=0.9)
    train(model, range(2))
    with torch.no_grad():  # statistics of other weights, as those of a G that moves fast
        for name, buffer in model.averaged.named_buffers():
            if "running" in name:
                buffer.fill_(100)
    model.eval()
    z, noise = model.sample(512), model.sample_noise(512)
    found = model.decode(z, noise)
    model.averaged.train()  # batch norm by this very batch
    assert (found - model.decode(z, noise)).abs().mean() < 0.25 * found.std(0).mean()


@pytest.mark.parametrize("network", NETWORKS)
def test_contrast_starts_at_its_step_at_chance(network):
    model = make(network, cr_weight=2.0, cr_start=3)
    plain = make(network)
    plain.load_state_dict(model.state_dict(), strict=False)
    before, x = weights(model.pair_discriminator), squares(32)
    assert train(model, range(3), x)["cr"] == 0
    assert same(before, model.pair_discriminator)
    train(plain, range(3), x)
    assert same(weights(plain.generator), model.generator)  # until then it is plain InfoGAN
    images = torch.rand(400, 1, 64, 64)
    chance = model._contrast(images, torch.arange(200) % 5)
    assert chance.item() == pytest.approx(math.log(5), abs=0.3)
    assert train(model, range(3, 4), x)["cr"] > 0
    assert not same(before, model.pair_discriminator)


def test_contrast_trains_the_generator_and_never_d():
    def after(cr_weight: float) -> InfoGAN:
        model = make("sn", cr_weight=1.0)
        z, d = model.sample(8), model.discriminator
        pairs, shared = model._pairs(8)
        images = model.generator(torch.cat([model._inputs(z, model.sample_noise(8)), pairs]))
        before = weights(model.pair_discriminator, d.trunk)
        model.cr_weight = cr_weight
        model._step_g(images[:8], z, model._contrast(images[8:], shared))
        assert same(before, model.pair_discriminator, d.trunk)
        return model

    torch.manual_seed(0)
    assert not same(weights(after(0.0).generator), after(1.0).generator)


# --- encode, decode, sample


@pytest.mark.parametrize("network", NETWORKS)
def test_traversals_hold_the_noise_fixed(network):
    model = make(network, categorical=(3,))
    train(model, range(2))
    model.eval()
    z = model.sample(1, torch.Generator().manual_seed(1))
    images = model.decode(z.repeat(6, 1))
    assert all(torch.equal(images[0], image) for image in images[1:])
    torch.testing.assert_close(images[:1], model.decode(z), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.decode(z, model.fixed_noise), model.decode(z))
    assert not torch.equal(model.decode(z, model.fixed_noise + 0.5), model.decode(z))
    moved = z.repeat(6, 1)
    moved[:, 0] = torch.linspace(-2, 2, 6)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(model.decode(moved)))
    assert "fixed_noise" in model.state_dict()
    assert torch.equal(make(network, seed=5).fixed_noise, make(network, seed=6).fixed_noise)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_encode_and_decode_shapes_and_ranges(network, channels):
    model = make(network, channels, continuous=2, categorical=(4, 3), q_std="learned")
    x = squares(16, channels)
    train(model, range(1), x)
    model.eval()
    codes = model.encode(x)
    assert codes.shape == (16, model.latent_dim) == (16, 4)
    assert set(codes[:, 2].tolist()) <= {0.0, 1.0, 2.0, 3.0}
    images = model.decode(codes)
    assert images.shape == x.shape
    assert 0 <= images.min() <= images.max() <= 1
    # an image's code and a code's image do not depend on their neighbours
    torch.testing.assert_close(model.encode(x[:1]), codes[:1], rtol=1e-4, atol=1e-5)
    q = model.discriminator(x * (1 - model.low) + model.low)[1].detach()  # 2 + 2 + 4 + 3 columns
    torch.testing.assert_close(codes[:, :2], q[:, :2])
    assert torch.equal(codes[:, 2].long(), q[:, 4:8].argmax(1))
    assert torch.equal(codes[:, 3].long(), q[:, 8:].argmax(1))


def test_range_of_the_networks_images_is_undone():
    for network, low in (("seed", -1.0), ("sn", 0.0), ("broadcast", 0.0)):
        model = make(network).eval()
        assert model._to_network(torch.tensor([0.0, 0.5, 1.0])).tolist() == [low, (low + 1) / 2, 1]
        raw = model.generator(torch.cat([torch.zeros(1, 5), model.fixed_noise], 1)).detach()
        expected = (raw - low) / (1 - low)
        torch.testing.assert_close(model.decode(torch.zeros(1, 5)), expected)


def test_a_category_is_one_hot_for_the_generator():
    model = make("sn", continuous=1, categorical=(3, 2), noise=1)
    z = torch.tensor([[0.5, 2, 0], [0.5, -2, 0.9]])
    inputs = model._inputs(z, torch.full((2, 1), 0.25))
    expected = [[0.5, 0, 0, 1, 1, 0, 0.25], [0.5, 1, 0, 0, 0, 1, 0.25]]
    assert inputs.tolist() == expected


def test_samples_follow_the_prior():
    model = make("sn", continuous=2, categorical=(3,))
    z = model.sample(30_000, torch.Generator().manual_seed(0))
    assert torch.equal(z, model.sample(30_000, torch.Generator().manual_seed(0)))
    assert z[:, :2].abs().max() <= 1
    assert z[:, :2].mean(0).tolist() == pytest.approx([0, 0], abs=0.02)
    assert z[:, :2].var(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.01)
    assert z[:, 2].long().bincount().tolist() == pytest.approx([10_000] * 3, rel=0.03)
    assert model.sample_noise(7).shape == (7, 5)


def test_compiling_compiles_the_networks():
    plain, compiled = make("sn"), make("sn")
    compiled.compile(backend="eager")
    assert plain.discriminator._compiled_call_impl is None
    assert compiled.discriminator._compiled_call_impl is not None
    assert compiled.generator._compiled_call_impl is not None
    averaged = make("sn", ema=0.9)
    averaged.compile(backend="eager")
    assert averaged.averaged._compiled_call_impl is None
    penalised = make("sn", r1=1.0)  # whose D is differentiated twice
    penalised.compile(backend="aot_eager")
    assert penalised.discriminator._compiled_call_impl is None
    assert penalised.generator._compiled_call_impl is not None
    assert train(penalised, range(1))["r1"] > 0


# --- borders and warnings


def test_refusals_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"64x64 pixels, not \(32, 32\)"):
        InfoGAN((1, 32, 32))
    with pytest.raises(ValueError, match=r"model\.continuous: 0"):
        InfoGAN((1, 64, 64), continuous=0)
    with pytest.raises(ValueError, match=r"model\.cr_weight: 1\.0 is not allowed with one code"):
        InfoGAN((1, 64, 64), continuous=1, cr_weight=1.0)
    with pytest.raises(ValueError, match=r"model\.lr_decay: 0\.5"):
        InfoGAN((1, 64, 64), lr_decay=0.5)
    model = make("sn")
    for call in (model.encode, model.decode, model.information):
        with pytest.raises(AssertionError, match=r"eval\(\)"):
            call(torch.zeros(2, 5))


HEALTHY = {"d_real": 0.6, "d_fake": 0.7, "g_loss": 0.9, "std_fake": 0.2, "std_real": 0.25}


@pytest.mark.parametrize(
    ("terms", "word"),
    [
        ({}, None),
        ({"std_fake": 0.05}, "mode collapse"),
        ({"d_real": 0.999, "d_fake": 1.0, "g_loss": 9.0}, "has won"),
        ({"d_real": 1.0, "d_fake": 0.0}, "dead discriminator"),
        ({"d_real": 0.999, "d_fake": 1.0, "g_loss": 2.0}, None),
    ],
)
def test_warnings(terms, word):
    found = make("sn").warnings(HEALTHY | terms)
    assert len(found) == (word is not None)
    assert all(word in text for text in found)


def test_a_collapsed_generator_is_noticed_from_its_own_terms():
    model = make("seed", lr_g=1e-12)
    nn.init.zeros_(model.generator[-1][0].weight)  # one image whatever the code
    terms = {name: float(value) for name, value in train(model, range(1)).items()}
    assert terms["std_fake"] < 1e-3
    assert "mode collapse" in model.warnings(terms)[0]
