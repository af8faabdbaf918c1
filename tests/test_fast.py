"""The fast operators are the plain layers: same values, same gradients, same parameters."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from models import fast
from models.fast import Conv2d, ConvTranspose2d, Sequential, bernoulli_nll


def function_of(layer, *slope):
    """A layer as a function of its input, weight and bias."""

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, *slope))

    return function


SHAPES = [(16, 32, 4), (32, 32, 8), (32, 1, 6), (8, 3, 5)]


def assert_same_layer(fast, plain, x, channels_last):
    """Values and all gradients of two layers, given the same weights and x; returns the values."""
    fast.load_state_dict(plain.state_dict())
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, y_plain = fast(ours), plain(theirs)
    torch.testing.assert_close(y, y_plain)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    y_plain.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad)
    for got, expected in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-4)
        got.grad = None  # a layer may serve another test
    return y


@pytest.mark.parametrize(("inputs", "outputs", "side"), SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_transposed_convolution_equals_the_plain_layer(inputs, outputs, side, channels_last, bias):
    plain = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias)
    fast = ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias)
    x = torch.randn(3, inputs, side, side + 1)
    assert_same_layer(fast, plain, x, channels_last)


@pytest.mark.parametrize(("inputs", "outputs", "side"), [(2, 6, 3), (3, 1, 3), (2, 3, 2)])
def test_transposed_convolution_passes_gradcheck(inputs, outputs, side):
    layer = ConvTranspose2d(inputs, outputs, 4, 2, 1).double()
    x = torch.randn(2, inputs, side, side, dtype=torch.float64, requires_grad=True)
    function = function_of(layer)
    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("inputs", "padding", "side"), [(1, 1, 8), (3, 1, 6), (1, 0, 8), (4, 0, 6)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_of_few_channels_equals_the_plain_layer(inputs, padding, side, channels_last):
    plain, fast = nn.Conv2d(inputs, 16, 4, 2, padding), Conv2d(inputs, 16, 4, 2, padding)
    x = torch.randn(3, inputs, side, side + 2)
    assert_same_layer(fast, plain, x, channels_last)


@pytest.mark.parametrize(("inputs", "padding"), [(1, 1), (2, 0)])
def test_convolution_of_few_channels_passes_gradcheck(inputs, padding):
    layer = Conv2d(inputs, 3, 4, 2, padding).double()
    x = torch.randn(2, inputs, 6, 6, dtype=torch.float64, requires_grad=True)
    function = function_of(layer)
    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))
    assert torch.autograd.gradgradcheck(function, (x, layer.weight, layer.bias))  # InfoGAN's r1


@pytest.mark.parametrize("settings", [(8, 3, 4, 2, 1), (1, 3, 3, 1, 1), (1, 3, 4, 2, 2)])
def test_other_convolutions_are_left_to_the_library(settings):
    layer, x = Conv2d(*settings), torch.randn(2, settings[0], 17, 19)
    torch.testing.assert_close(layer(x), nn.Conv2d.forward(layer, x))
    assert type(layer(x).grad_fn).__name__ == "ConvolutionBackward0"


SMALL = [  # settings of layers, input size: stride 1 and more, with and without padding and bias
    ((6, 5, 4), (7, 7)),
    ((6, 5, 4, 1, 1), (3, 4)),
    ((6, 5, 2, 1, 0), (2, 3)),
    ((6, 5, (3, 2)), (6, 5)),
    ((6, 5, 4, 2), (14, 13)),
    ((6, 5, 4, 2, 1), (8, 9)),
]


@pytest.mark.parametrize(("settings", "size"), SMALL)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_convolution_to_a_small_map_equals_the_plain_layer(settings, size, channels_last, bias):
    plain, fast = nn.Conv2d(*settings, bias=bias), Conv2d(*settings, bias=bias)
    x = torch.randn(3, 6, *size)
    assert type(fast(x).grad_fn).__name__ == "_ConvBackward"
    assert_same_layer(fast, plain, x, channels_last)


@pytest.mark.parametrize(("settings", "size"), [((2, 3, 3, 1, 1), (3, 2)), ((2, 3, 3, 2), (5, 4))])
def test_convolution_to_a_small_map_passes_gradcheck(settings, size):
    layer = Conv2d(*settings).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)
    function = function_of(layer, 0.2)
    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))
    assert torch.autograd.gradgradcheck(function, (x, layer.weight, layer.bias))


def test_overlapping_gradients_are_summed_in_float32():
    torch.manual_seed(0)
    layer = Conv2d(4, 64, 4)
    x = torch.randn(8, 4, 6, 6).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    wide = x.detach().float().requires_grad_()
    exact = F.conv2d(wide, layer.weight.detach().bfloat16().float())
    (exact * gradient.float()).sum().backward()
    error = (x.grad.float() - wide.grad).norm() / wide.grad.norm()
    assert error < 0.0028  # .0023; with sums in bfloat16 .0034


FUSED = [  # layers, input shape
    (Conv2d(8, 16, 4, 2, 1), (3, 8, 8, 10)),
    (Conv2d(1, 16, 4, 2, 1), (3, 1, 8, 10)),
    (Conv2d(3, 8, 4, 2), (3, 3, 8, 10)),
    (Conv2d(8, 6, 3), (3, 8, 7, 5)),
    (ConvTranspose2d(16, 8, 4, 2, 1), (3, 16, 4, 5)),
    (ConvTranspose2d(16, 2, 4, 2, 1), (3, 16, 4, 5)),
    (ConvTranspose2d(16, 8, 4, 2, 1, bias=False), (3, 16, 4, 5)),
]


def activation(slope):
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)


@pytest.mark.parametrize(("layer", "shape"), FUSED, ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_layer_with_its_activation_equals_the_two(layer, shape, slope, channels_last):
    plain = nn.Sequential(layer.__class__.__base__(**arguments(layer)), activation(slope))
    fast = Sequential(layer, activation(slope))
    y = assert_same_layer(fast, plain, torch.randn(shape), channels_last)
    assert (y == 0).any() == (slope == 0)


def arguments(layer):
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


@pytest.mark.parametrize("layer", [Conv2d(2, 3, 4, 2, 1), Conv2d(5, 3, 4, 2, 1)], ids=str)
def test_a_layer_with_its_activation_passes_gradcheck(layer):
    layer = layer.double()
    x = torch.randn(2, layer.in_channels, 6, 6, dtype=torch.float64, requires_grad=True)
    function = function_of(layer, 0.2)
    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))
    assert torch.autograd.gradgradcheck(function, (x, layer.weight, layer.bias))  # InfoGAN's r1


def test_a_transposed_layer_with_its_activation_passes_gradcheck():
    layer = ConvTranspose2d(3, 6, 4, 2, 1).double()
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    function = function_of(layer, 0.2)
    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))


def test_in_bfloat16_the_gradient_of_relu_is_masked_by_sign():
    torch.manual_seed(0)
    out = torch.randn(4, 8, 6, 6, dtype=torch.bfloat16).relu_()
    out[0, 0, 0, :2] = torch.tensor([-0.0, 1e-38])
    grad = torch.randn(4, 8, 6, 6).bfloat16().to(memory_format=torch.channels_last)
    with torch.no_grad():
        masked = fast._before_activation(grad, out, 0.0)
    assert torch.equal(masked, torch.where(out > 0, grad, 0.0))


@pytest.mark.parametrize("amx", [False, True])
def test_both_ways_to_few_channels_are_the_plain_layer_in_bfloat16(amx, monkeypatch):
    monkeypatch.setattr(fast, "AMX", amx)
    layer, x = ConvTranspose2d(8, 3, 4, 2, 1), torch.randn(2, 8, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    expected = F.conv_transpose2d(x, layer.weight, layer.bias, 2, 1)
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)


def test_sequential_runs_what_stands_between_a_layer_and_its_activation_too():
    row = Sequential(Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), Conv2d(8, 4, 3))
    x = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(row(x), nn.Sequential.forward(row, x))
    row = Sequential(nn.ReLU(), Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.ReLU(), nn.Flatten())
    torch.testing.assert_close(row(x), nn.Sequential.forward(row, x))


def test_bernoulli_nll_keeps_small_gradients_of_white_pixels_in_bfloat16():
    logits = torch.full((1, 1, 2, 2), 7.0).bfloat16().requires_grad_()
    bernoulli_nll(logits, torch.ones(1, 1, 2, 2)).backward()
    torch.testing.assert_close(
        logits.grad.float(),
        torch.full((1, 1, 2, 2), -torch.sigmoid(torch.tensor(-7.0)).item()),
        rtol=0.01,
        atol=0,
    )


def test_bernoulli_nll_equals_binary_cross_entropy_at_every_size_of_logit():
    logits = torch.tensor([-200.0, -30.0, -1.0, 0.0, 1e-3, 5.0, 40.0, 200.0]).view(2, 1, 2, 2)
    x = torch.tensor([0.0, 1.0, 0.25, 1.0, 0.0, 1.0, 1.0, 0.5]).view(2, 1, 2, 2)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss, plain = (
        bernoulli_nll(ours, x),
        F.binary_cross_entropy_with_logits(theirs, x, reduction="sum"),
    )
    torch.testing.assert_close(loss, plain)
    (2 * loss).backward()
    (2 * plain).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_bernoulli_nll_of_colour_images_does_not_depend_on_their_memory_format():
    logits, x = torch.randn(2, 3, 4, 6), torch.rand(2, 3, 4, 6)
    other = logits.to(memory_format=torch.channels_last)
    torch.testing.assert_close(bernoulli_nll(other, x), bernoulli_nll(logits, x))


def test_bernoulli_nll_passes_gradcheck():
    logits = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: bernoulli_nll(value, x), (logits,))


def test_under_autocast_the_layer_computes_in_bfloat16_close_to_the_plain_one():
    layer = ConvTranspose2d(32, 1, 4, 2, 1)
    x = torch.randn(2, 32, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y.float(), F.conv_transpose2d(x, layer.weight, layer.bias, 2, 1), rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("settings", [(1, 4, 4, 2, 1), (5, 4, 4, 2, 1), (5, 4, 3, 1, 1), (5, 4, 4)])
@pytest.mark.parametrize("slope", [1.0, 0.2])
def test_a_call_reads_the_weight_once(settings, slope):
    """Under spectral norm a reading is a step of the power iteration, of which torch takes one."""
    plain, layer = nn.Conv2d(*settings), Conv2d(*settings)
    layer.load_state_dict(plain.state_dict())
    torch.manual_seed(0)
    plain = spectral_norm(plain)
    torch.manual_seed(0)
    layer = spectral_norm(layer)
    x = torch.randn(2, settings[0], 12, 12)
    torch.testing.assert_close(layer(x, slope), F.leaky_relu(plain(x), slope))
    u, expected = (module.parametrizations.weight[0]._u for module in (layer, plain))
    torch.testing.assert_close(u, expected)


@pytest.mark.parametrize("side", [16, 17])  # one row of 17 is left over by a stride of 2
@pytest.mark.parametrize("settings", [(1, 4, 4, 2, 1), (5, 4, 4, 2, 1), (5, 4, 3, 1, 1), (5, 4, 4)])
def test_gradients_that_are_differentiated_are_those_of_the_plain_layer(settings, side):
    """InfoGAN's r1: the slope in the input, and the gradient of its square in the weight."""
    plain, layer = nn.Conv2d(*settings).double(), Conv2d(*settings).double()
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(2, settings[0], side, side, dtype=torch.float64, requires_grad=True)
    slopes = {}
    for module in (plain, layer):
        out = F.leaky_relu(plain(x), 0.2) if module is plain else layer(x, 0.2)
        with fast.input_gradients_only():
            (slopes[module],) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        slopes[module].square().sum().backward(inputs=[module.weight])
    torch.testing.assert_close(slopes[layer], slopes[plain])
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("layer", [Conv2d(1, 4, 4, 2, 1), ConvTranspose2d(4, 1, 4, 2, 1)], ids=str)
def test_on_another_device_the_activation_is_a_call_of_its_own(layer):
    """The device "meta" stands for a GPU."""
    x = torch.empty(2, layer.in_channels, 8, 8, device="meta")
    layer = copy.deepcopy(layer).to("meta")
    assert type(layer(x, 0.2).grad_fn).__name__ == "LeakyReluBackward1"
    assert type(layer(x).grad_fn).__name__ == "ConvolutionBackward0"
