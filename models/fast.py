"""The operators that decide training speed on a CPU: same maths as torch's layers, other kernels.

Each is held against the plain layer and against finite differences by tests/test_fast.py.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_conv = torch.ops.aten.convolution
_conv_backward = torch.ops.aten.convolution_backward
FEW_CHANNELS = 4  # up to here a 4x4, stride 2 convolution is better taken over 2x2 blocks
ACTIVATIONS = nn.ReLU, nn.LeakyReLU
SMALL_MAP = 36  # up to so many positions of a map products of patches beat the library's kernels
AMX = torch.cpu._is_amx_tile_supported()  # matrix units: a wasteful product beats a frugal sum
_LIBRARY = torch.backends.mkldnn.is_available()
_FUSED = {  # whether this build and processor have convolutions with an activation inside
    torch.float32: _LIBRARY,
    torch.bfloat16: _LIBRARY and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
}


_weights_left_out = False


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Within it a backward pass through the layers below leaves their weights' gradients out.

    Why: torch tells an operator written in Python which gradients may be asked for, not which are.
    """
    global _weights_left_out
    before, _weights_left_out = _weights_left_out, True
    try:
        yield
    finally:
        _weights_left_out = before


def _needed(ctx) -> tuple[bool, bool, bool]:
    """Which gradients an operator must give: of input, weight and bias."""
    need_x, *rest = ctx.needs_input_grad[:3]
    return need_x, *(need and not _weights_left_out for need in rest)


class _Conv(torch.autograd.Function):
    """Convolution and the leaky ReLU behind it (slope 0: ReLU, slope 1: nothing).

    Why: the library's convolution can apply the activation before it writes its result, which is
    read and written once more otherwise, in bfloat16 at the price of a large convolution.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, slope: float
    ) -> Tensor:
        ctx.geometry, ctx.slope = (stride, padding), slope
        out = _activated(x, weight, bias, stride, padding, False, slope)
        ctx.save_for_backward(x, weight, None if slope == 1 else out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, out = ctx.saved_tensors
        need_x, need_weight, need_bias = _needed(ctx)
        grad = _before_activation(grad, out, ctx.slope)
        grad_x = grad_weight = grad_bias = None
        if need_x:
            grad_x = _input_gradient(x, weight, grad, *ctx.geometry)
        if need_weight:
            grad_weight = _weight_gradient(x, weight, grad, *ctx.geometry)
        if need_bias:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None


class _ConvTranspose(torch.autograd.Function):
    """Transposed convolution and leaky ReLU; its gradients are those of the adjoint convolution.

    Why: the library's weight gradient of a transposed convolution takes two to four times as long
    as the same sums taken as the weight gradient of a convolution with input and output gradient
    swapped, and its bias gradient costs as much again; a plain sum does the latter.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, slope: float
    ) -> Tensor:
        ctx.geometry, ctx.slope = (stride, padding), slope
        out = _activated(x, weight, bias, stride, padding, True, slope)
        ctx.save_for_backward(x, weight, None if slope == 1 else out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, out = ctx.saved_tensors
        grad, geometry = _before_activation(grad, out, ctx.slope), ctx.geometry
        need_x, need_weight, need_bias = _needed(ctx)
        grad_x = grad_weight = grad_bias = None
        if need_bias:
            grad_bias = grad.sum((0, 2, 3))
        few = _is_few(weight, *geometry)
        if few:
            (grad, weight), geometry = _as_blocks(grad, weight, geometry[1]), (1, 0)
        if need_x:
            grad_x = _conv(grad, weight, None, *_settings(*geometry))
        if need_weight:
            grad_weight = _weight_gradient(grad, weight, x, *geometry)
            grad_weight = _unfold(grad_weight) if few else grad_weight
        return grad_x, grad_weight, grad_bias, None, None, None


def _settings(stride: int, padding: int, transposed: bool = False) -> tuple:
    """The last arguments of torch's convolution: no dilation, no output padding, one group."""
    return [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1


def _activated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    transposed: bool,
    slope: float,
) -> Tensor:
    """A (transposed) convolution and the leaky ReLU behind it, in one operator where there is.

    torch.compile takes the weight of the fused transposed one to be laid out in another way than it
    is, and puts the activation into its own code.
    """
    fused = _FUSED.get(x.dtype) and not (transposed and torch.compiler.is_compiling())
    if transposed and _is_few(weight, stride, padding) and padding == 1:
        out = _to_few_channels(x, weight, bias)
    elif not transposed and stride == 1 and _is_small(x, weight, stride, padding):
        out = _product(x, weight, bias, padding)
    elif slope == 1 or not fused:
        out = _conv(x, weight, bias, *_settings(stride, padding, transposed))
    else:
        activation = ("relu", []) if slope == 0 else ("leaky_relu", [slope])
        rest = [stride] * 2, [1, 1], 1, *activation, ""
        if transposed:
            transpose = torch.ops.mkldnn._convolution_transpose_pointwise
            return transpose(x, weight, bias, [padding] * 2, [0, 0], *rest)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, [padding] * 2, *rest)
    return _leaky(out, slope)


def _leaky(x: Tensor, slope: float) -> Tensor:
    """Leaky ReLU in place (slope 1: nothing)."""
    return x if slope == 1 else F.leaky_relu_(x, slope)


def _before_activation(grad: Tensor, out: Tensor | None, slope: float) -> Tensor:
    """The gradient in front of the leaky ReLU that gave out, from the one behind it."""
    if slope == 1:
        return grad
    out = out.detach()  # of steps, whose own derivative is 0: not taken as maps of zeros
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    if eager and slope == 0 and grad.dtype == torch.bfloat16:
        # A bfloat16 is positive where its bits are, read as an integer; the library's own operator
        # goes through float32, which takes twice as long. Compiled code has it the other way round.
        bits = grad.view(torch.int16), out.view(torch.int16)
        return torch.ops.aten.threshold_backward(*bits, 0).view(torch.bfloat16)
    return torch.ops.aten.leaky_relu_backward(grad, out, slope, True)


def _is_small(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether the convolution gives a small map.

    Why: there the library's kernels, made for rows of many positions, take two to six times as long
    as matrix products of patches (256 channels, 3x3 and 6x6 maps). torch.compile is left with the
    library's: it takes minutes over the sums of patches, and its code for them is slower.
    """
    if torch.compiler.is_compiling():
        return False
    rows, columns = ((x.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (2, 3))
    return rows * columns <= SMALL_MAP


def _patches(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """What the kernel sees at each position: (B, C, H, W) -> (B * positions, k * k * C)."""
    x = F.pad(x, [padding] * 4).permute(0, 2, 3, 1)
    x = x.unfold(1, weight.shape[2], stride).unfold(2, weight.shape[3], stride)
    return x.permute(0, 1, 2, 4, 5, 3).reshape(-1, weight[0].numel())


def _as_matrix(weight: Tensor) -> Tensor:
    """(Cout, Cin, k, k) -> (Cout, k * k * Cin)."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """A stride 1 convolution as one matrix product."""
    out = F.linear(_patches(x, weight, 1, padding), _as_matrix(weight), bias)
    rows = x.shape[2] + 2 * padding - weight.shape[2] + 1
    return out.view(len(x), rows, -1, len(weight)).permute(0, 3, 1, 2)


def _input_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int, pad: int) -> Tensor:
    """Gradient of a convolution's input.

    One that is differentiated itself is taken as a transposed convolution, whose gradients are fast
    ones; torch's own take the second derivative's sums over the batch as a convolution of 32x32
    kernels, five times as long.
    """
    if stride != 1 or not _is_small(x, weight, stride, pad):
        covered = all(
            (grad.shape[i] - 1) * stride + weight.shape[i] - 2 * pad == x.shape[i] for i in (2, 3)
        )
        if covered and torch.is_grad_enabled():
            return _ConvTranspose.apply(grad, weight, None, stride, pad, 1.0)
        wanted = [True, False, False]
        return _conv_backward(grad, x, weight, None, *_settings(stride, pad), wanted)[0]
    batch, channels, height, width = x.shape
    rows, columns = grad.shape[2:]
    patches = grad.permute(0, 2, 3, 1).reshape(-1, len(weight)) @ _as_matrix(weight)
    patches = patches.view(batch, rows, columns, *weight.shape[2:], channels)
    dtype = torch.promote_types(x.dtype, torch.float32)  # of the sums where patches overlap
    out = x.new_zeros(batch, height + 2 * pad, width + 2 * pad, channels, dtype=dtype)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            out[:, i : i + rows, j : j + columns] += patches[:, :, :, i, j]
    out = out[:, pad : pad + height, pad : pad + width]
    return out.permute(0, 3, 1, 2).to(x.dtype)


def _weight_gradient(x: Tensor, weight: Tensor, grad: Tensor, stride: int, pad: int) -> Tensor:
    """Gradient of a convolution's weight."""
    if not _is_small(x, weight, stride, pad):
        wanted = [False, True, False]
        return _conv_backward(grad, x, weight, None, *_settings(stride, pad), wanted)[1]
    grad = grad.permute(0, 2, 3, 1).reshape(-1, len(weight))
    products = grad.t() @ _patches(x, weight, stride, pad)
    return products.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)


def _is_few(weight: Tensor, stride: int, padding: int) -> bool:
    """Whether this (many, few, k, k) weight is taken over blocks."""
    few = weight.shape[1] <= FEW_CHANNELS and weight.shape[2:] == (4, 4)
    return few and stride == 2 and padding in (0, 1)


def _as_blocks(x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """What a 2x2, stride 1, padding 0 convolution takes to be the 4x4, stride 2 one of x.

    Why: of one channel the library's 4x4 convolution and its gradients take up to twice as long.
    """
    return _fold(F.pad(x, [padding] * 4)), _fold(weight)


def _fold(x: Tensor) -> Tensor:
    """2x2 blocks of pixels to channels: (B, C, 2H, 2W) -> (B, 4C, H, W), channels last.

    torch's pixel_unshuffle, which takes three times as long.
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    x = x.reshape(batch, 4 * channels, height // 2, width // 2)
    return x.contiguous(memory_format=torch.channels_last)


def _unfold(x: Tensor) -> Tensor:
    """The inverse of _fold: (B, 4C, H, W) -> (B, C, 2H, 2W)."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, channels // 4, 2 * height, 2 * width)


def _to_few_channels(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """4x4, stride 2, padding 1 transposed convolution to few channels."""
    if not (AMX and x.dtype == torch.bfloat16):
        return _overlap_add(x, weight, bias)
    bias = None if bias is None else bias.repeat_interleave(4)
    blocks = _conv(x, _fold(weight), bias, *_settings(1, 0, transposed=True))
    return _unfold(blocks)[:, :, 1:-1, 1:-1].contiguous()


def _overlap_add(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """4x4, stride 2, padding 1 transposed convolution to few channels: one product, then sums.

    Row 2m of the output is the sum of kernel row 1 at m and kernel row 3 at m - 1; row 2m + 1 of
    kernel row 2 at m and kernel row 0 at m + 1; likewise for columns. Every kernel element is a
    plane of its own, so that the sums run over long contiguous rows.
    """
    batch, inputs, height, width = x.shape
    channels = weight.shape[1]
    kernel = weight.permute(2, 3, 1, 0).reshape(-1, inputs)  # (4 * 4 * C, Cin)
    planes = kernel @ x.permute(0, 2, 3, 1).reshape(-1, inputs).t()  # (4 * 4 * C, BHW)
    planes = planes.view(4, 4 * channels, batch, height, width)
    rows = planes[1:3]  # (2, 4C, B, H, W)
    rows[0, :, :, 1:] += planes[3, :, :, :-1]
    rows[1, :, :, :-1] += planes[0, :, :, 1:]
    rows = rows.view(2, 4, channels, batch, height, width)
    columns = rows[:, 1:3] + (0 if bias is None else bias.view(-1, 1, 1, 1))  # (2, 2, C, B, H, W)
    columns[:, 0, ..., 1:] += rows[:, 3, ..., :-1]
    columns[:, 1, ..., :-1] += rows[:, 0, ..., 1:]
    out = columns.permute(3, 2, 4, 0, 5, 1)  # (B, C, H, 2, W, 2)
    return out.reshape(batch, channels, 2 * height, 2 * width)


def _as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """What autocast would make of the arguments of a convolution."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class Conv2d(nn.Conv2d):
    """nn.Conv2d with the kernels above: the same parameters, names and initial values.

    For square strides and paddings, without dilation and groups. The weight is read once a call:
    each reading of one under spectral norm takes a step of its power iteration.
    """

    def forward(self, x: Tensor, slope: float = 1.0) -> Tensor:
        """(B, Cin, H, W) -> (B, Cout, H', W') and through a leaky ReLU of this slope (1: none)."""
        if x.device.type != "cpu":  # cuDNN picks its own kernels
            return _leaky(super().forward(x), slope)
        weight, stride, padding = self.weight, self.stride[0], self.padding[0]
        few = _is_few(weight, stride, padding) and x.shape[2] % 2 == x.shape[3] % 2 == 0
        if not few and slope == 1 and not _is_small(x, weight, stride, padding):
            return self._conv_forward(x, weight, self.bias)
        x, weight, bias = _as_autocast(x, weight, self.bias)
        if few:
            x, weight = _as_blocks(x, weight, padding)
            stride, padding = 1, 0
        return _Conv.apply(x, weight, bias, stride, padding, slope)


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d with the kernels above: the same parameters, names and initial values.

    For square strides and paddings, without dilation, groups and output padding.
    """

    def forward(self, x: Tensor, slope: float = 1.0) -> Tensor:
        """(B, Cin, H, W) -> (B, Cout, H', W') and through a leaky ReLU of this slope (1: none)."""
        if x.device.type != "cpu":
            return _leaky(super().forward(x), slope)
        x, weight, bias = _as_autocast(x, self.weight, self.bias)
        return _ConvTranspose.apply(x, weight, bias, self.stride[0], self.padding[0], slope)


class Sequential(nn.Sequential):
    """nn.Sequential that runs each layer above and the (leaky) ReLU behind it as one operator."""

    def forward(self, x: Tensor) -> Tensor:
        layers = iter(zip_longest(self, list(self)[1:]))
        for layer, after in layers:
            if isinstance(layer, Conv2d | ConvTranspose2d) and isinstance(after, ACTIVATIONS):
                x = layer(x, getattr(after, "negative_slope", 0.0))
                next(layers)
            else:
                x = layer(x)
        return x


class _BernoulliNLL(torch.autograd.Function):
    """Sum over all pixels of -log p(x | logits), its gradient kept from the forward pass."""

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        wide, x = logits.to(dtype), x.to(dtype)
        p = torch.sigmoid(wide)
        if logits.requires_grad:  # rounded after the difference: 1 - p is small where x is 1
            ctx.save_for_backward((p - x).to(logits.dtype))
        # log(1 + e^l) - x l = max(l, 0) - log max(p, 1 - p) - x l, stable for every l
        log_larger = p.sub_(0.5).abs_().add_(0.5).log_()
        return wide.clamp(min=0).sub_(log_larger).sum() - torch.dot(wide.reshape(-1), x.reshape(-1))

    @staticmethod
    def backward(ctx, grad: Tensor):
        (residual,) = ctx.saved_tensors
        return residual * grad.to(residual.dtype), None


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """Negative log-likelihood of images under a Bernoulli decoder, summed over the batch.

    logits, x: (B, C, H, W), x in [0, 1]; returns nats, 0-d, float32 or wider. x takes no gradient.
    """
    return _BernoulliNLL.apply(logits, x)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, so that each step reuses warm pages instead of fresh ones.

    Without it every activation of a few megabytes is a new mapping that the kernel must zero. Does
    nothing where the C library has no mallopt (macOS, Windows, musl).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: no mapping of its own below 1 GiB
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: nothing goes back below 1 GiB
