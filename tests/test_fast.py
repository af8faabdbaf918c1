"""The fast operators are the plain layers: same values, same gradients, same parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.fast import Conv2d, ConvTranspose2d, bernoulli_nll

SHAPES = [(16, 32, 4), (32, 32, 8), (32, 1, 6), (8, 3, 5)]


def assert_same_layer(fast, plain, x, channels_last):
    """Values and all gradients of two layers, given the same weights and x."""
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
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
    if plain.bias is not None:
        torch.testing.assert_close(fast.bias.grad, plain.bias.grad, rtol=1e-4, atol=1e-4)


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

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

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

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))
    assert torch.autograd.gradgradcheck(function, (x, layer.weight, layer.bias))  # InfoGAN's r1


@pytest.mark.parametrize("settings", [(8, 3, 4, 2, 1), (1, 3, 3, 1, 1), (1, 3, 4, 2, 2)])
def test_other_convolutions_are_left_to_the_library(settings):
    layer, x = Conv2d(*settings), torch.randn(2, settings[0], 7, 9)
    torch.testing.assert_close(layer(x), nn.Conv2d.forward(layer, x))
    assert type(layer(x).grad_fn).__name__ == "ConvolutionBackward0"


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
