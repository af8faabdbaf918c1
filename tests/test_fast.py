"""The fast kernels give the results of torch's own layers: values, gradients, parameters."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import runs
from models import build_model, fast
from models.fast import accelerate
from models.gan_networks import GAN_NETWORKS
from models.likelihoods import nll

OURS, TORCHS = "_ConvBackward", "ConvolutionBackward0"
LAYERS = [  # layer, size of its input, its operator without an activation
    (nn.Conv2d(1, 16, 4, 2, 1), (8, 10), OURS),  # few channels
    (nn.Conv2d(4, 8, 4, 2, bias=False), (8, 10), OURS),
    (nn.Conv2d(6, 5, 4, 1, 1, bias=False), (3, 4), OURS),  # small maps
    (nn.Conv2d(6, 5, (3, 2)), (6, 5), OURS),
    (nn.Conv2d(6, 5, 4, 2), (14, 13), OURS),
    (nn.Conv2d(8, 6, 4, 2, 1), (17, 19), TORCHS),  # others
    (nn.ConvTranspose2d(16, 32, 4, 2, 1, bias=False), (4, 5), OURS),
    (nn.ConvTranspose2d(32, 1, 4, 2, 1), (6, 7), OURS),
    (nn.ConvTranspose2d(8, 3, 4, 2, 0), (5, 6), OURS),
]
PENALISED = [(1, 4, 4, 2, 1), (2, 4, 4, 2), (5, 4, 4, 2, 1), (5, 4, 3, 1, 1), (5, 4, 4), (5, 4, 12)]


def accelerated(model):
    return accelerate(copy.deepcopy(model))


def assert_same(plain, x):
    """Values and all gradients of a module and of its accelerated copy; returns the values."""
    results = []
    for module in (plain, accelerated(plain)):
        own = x.clone().requires_grad_()
        y = module(own)
        weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
        gradients = torch.autograd.grad((y * weights).sum(), [own, *module.parameters()])
        results.append((y, *gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    return results[1][0]


@pytest.mark.parametrize(("layer", "size", "operator"), LAYERS, ids=str)
@pytest.mark.parametrize("slope", [None, 0.0, 0.2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_layer_and_its_activation_are_the_plain_ones(layer, size, operator, slope, channels_last):
    x = torch.randn(3, layer.in_channels, *size)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    if slope is None:
        y = assert_same(layer, x)
        assert type(y.grad_fn).__name__ == operator
    else:
        activation = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
        y = assert_same(nn.Sequential(layer, activation), x)
        assert type(y.grad_fn).__name__ == OURS  # one operator
        assert (y == 0).any() == (slope == 0)


@pytest.mark.parametrize("side", [16, 17])  # a stride of 2 leaves one row of 17 over
@pytest.mark.parametrize("settings", PENALISED)
def test_gradients_that_are_differentiated_again_are_the_plain_ones(settings, side):
    """R1: the slope in the input, and the gradient of its square in the weight."""
    plain = nn.Sequential(nn.Conv2d(*settings), nn.LeakyReLU(0.2)).double()
    x = torch.randn(2, settings[0], side, side, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (plain, accelerated(plain)):
        (slope,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward(inputs=[module[0].weight])
        results.append([slope, module[0].weight.grad])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("settings", PENALISED)
def test_a_call_reads_a_weight_under_spectral_norm_once(settings):
    """Each reading is a step of the power iteration, and torch takes one a call."""
    plain = nn.Sequential(spectral_norm(nn.Conv2d(*settings)), nn.LeakyReLU(0.2))
    layer, x = accelerated(plain), torch.randn(2, settings[0], 12, 12)
    torch.testing.assert_close(layer(x), plain(x))
    u, expected = (module[0].parametrizations.weight[0]._u for module in (layer, plain))
    torch.testing.assert_close(u, expected)


OTHERS = [
    type("Own", (nn.Conv2d,), {"forward": lambda self, x: -x})(4, 4, 3),
    nn.Conv2d(4, 4, 3, groups=2),
    nn.Conv2d(4, 4, 3, dilation=2),
    nn.Conv2d(4, 4, 3, padding="same"),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    nn.ConvTranspose2d(4, 4, 3, 2, output_padding=1),
]


@pytest.mark.parametrize("layer", OTHERS, ids=str)
def test_layers_that_the_kernels_do_not_cover_stay_as_they_are(layer):
    model = accelerated(nn.Sequential(layer, nn.ReLU()))
    assert type(model[0]) is type(layer)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(model(x), layer(x).relu())


@pytest.mark.parametrize("network", GAN_NETWORKS)
@pytest.mark.parametrize("side", [32, 64, 128])
def test_accelerated_networks_of_infogan_are_the_plain_ones(network, side):
    torch.manual_seed(0)
    built, shape = GAN_NETWORKS[network], (1, side, side)
    x = torch.rand(3, 1, side, side, dtype=torch.float64)
    assert_same(built.generator(7, shape).double(), torch.randn(3, 7, dtype=torch.float64))
    discriminator = built.discriminator(shape, 5).double().eval()
    for head in (discriminator.d_head, discriminator.q_head):
        assert_same(nn.Sequential(discriminator.trunk, head), x)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_accelerated_model_takes_the_plain_step_and_keeps_its_names(path):
    values, x = runs.resolve(path), (torch.rand(8, 1, 64, 64) < 0.05).float()
    terms, states = [], []
    for change in (lambda model: model, accelerate, lambda model: accelerate(accelerate(model))):
        torch.manual_seed(0)
        model = change(build_model((1, 64, 64), values["model"], values["objective"], 1000))
        terms.append(model.train_step(x, 20_000))  # by now all has begun
        states.append(list(model.state_dict()))
    torch.testing.assert_close(terms[1], terms[0], rtol=1e-3, atol=1e-3)
    assert all(torch.equal(terms[2][name], term) for name, term in terms[1].items())
    assert states[0] == states[1] == states[2]
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(isinstance(layer, fast.Conv2d | fast.ConvTranspose2d) for layer in layers)


def test_overlapping_gradients_are_summed_in_float32():
    torch.manual_seed(0)
    x, weight = torch.zeros(8, 4, 6, 6).bfloat16(), torch.randn(64, 4, 4, 4).bfloat16()
    grad = torch.randn(8, 64, 3, 3).bfloat16()
    result = fast._input_gradient(x, weight, grad, (1, 0)).float()
    exact = F.conv_transpose2d(grad.float(), weight.float())
    assert (result - exact).norm() / exact.norm() < 0.0028  # 0.0023; sums in bfloat16 0.0034


def test_in_bfloat16_the_gradient_of_relu_is_masked_by_sign():
    torch.manual_seed(0)
    out = torch.randn(4, 8, 6, 6, dtype=torch.bfloat16).relu_()
    out[0, 0, 0, :2] = torch.tensor([-0.0, 1e-38])
    grad = torch.randn(4, 8, 6, 6).bfloat16().to(memory_format=torch.channels_last)
    with torch.no_grad():
        masked = fast._before_activation(grad, out, 0.0)
    assert torch.equal(masked, torch.where(out > 0, grad, 0.0))


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_autocast_computes_a_transposed_layer_in_bfloat16(channels, amx, monkeypatch):
    monkeypatch.setattr(fast, "AMX", amx)
    layer, x = accelerate(nn.ConvTranspose2d(8, channels, 4, 2, 1)), torch.randn(2, 8, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    expected = F.conv_transpose2d(x, layer.weight, layer.bias, 2, 1)
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 4, 4, 2, 1), nn.ConvTranspose2d(4, 1, 4, 2, 1)])
def test_on_another_device_the_operators_are_those_of_torch(layer):
    """The device "meta" stands for a GPU."""
    row = accelerated(nn.Sequential(layer, nn.LeakyReLU(0.2))).to("meta")
    x = torch.empty(2, layer.in_channels, 8, 8, device="meta")
    assert type(row(x).grad_fn).__name__ == "LeakyReluBackward1"


def test_bernoulli_nll_is_binary_cross_entropy_at_every_size_of_logit():
    logits = torch.tensor([-200.0, -30.0, -1.0, 0.0, 1e-3, 5.0, 40.0, 200.0]).view(2, 1, 2, 2)
    x = torch.tensor([0.0, 1.0, 0.25, 1.0, 0.0, 1.0, 1.0, 0.5]).view(2, 1, 2, 2)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = nll("bernoulli", ours, x)
    plain = F.binary_cross_entropy_with_logits(theirs, x, reduction="sum")
    torch.testing.assert_close(loss, plain)
    (2 * loss).backward()
    (2 * plain).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    logits, x = torch.randn(2, 3, 4, 6), torch.rand(2, 3, 4, 6)
    other = logits.to(memory_format=torch.channels_last)
    torch.testing.assert_close(nll("bernoulli", other, x), nll("bernoulli", logits, x))


def test_bernoulli_nll_keeps_small_gradients_of_white_pixels_in_bfloat16():
    logits = torch.full((1, 1, 2, 2), 7.0).bfloat16().requires_grad_()
    nll("bernoulli", logits, torch.ones(1, 1, 2, 2)).backward()
    expected = torch.full((1, 1, 2, 2), -torch.sigmoid(torch.tensor(-7.0)).item())
    torch.testing.assert_close(logits.grad.float(), expected, rtol=0.01, atol=0)


def test_a_run_takes_numbers_below_the_normal_ones_as_zero(squares):
    """Products with them take ten times as long, and the momentum of dead units falls that far."""
    torch.set_flush_denormal(False)
    values = runs.resolve("config/twoD.yaml", [f"dataset={{name: npz, path: {squares}}}"])
    runs.build(values, torch.device("cpu"))
    assert (torch.full((64, 64), 1e-39) * 1.0 == 0).all()
