"""Faster kernels for training on a CPU: the results of torch's layers, computed in another way."""

import ctypes
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_conv = torch.ops.aten.convolution
_conv_backward = torch.ops.aten.convolution_backward
ACTIVATIONS = nn.ReLU, nn.LeakyReLU
FEW_CHANNELS = 4  # up to this many, a 4x4 kernel of stride 2 is faster as a 2x2 kernel over blocks
SMALL_MAP = 36  # up to this many positions, a matrix product of patches is faster
AMX = torch.cpu._is_amx_tile_supported()  # with matrix units one large product beats several sums
_LIBRARY = torch.backends.mkldnn.is_available()
_FUSED = {  # dtypes for which oneDNN has a convolution with an activation inside
    torch.float32: _LIBRARY,
    torch.bfloat16: _LIBRARY and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
}
Geometry = tuple[int, int]  # stride and padding, equal in both directions


def accelerate(model: nn.Module) -> nn.Module:
    """Make the layers that this file covers use its kernels on a CPU; returns the model."""
    fast = {kind.__base__.forward: kind for kind in (Conv2d, ConvTranspose2d, Sequential)}
    for module in model.modules():
        kind = fast.get(type(module).forward)  # None for a layer with a forward of its own
        if kind is Sequential or (kind and _is_covered(module)):
            # spectral norm has made a subclass of the layer, which must stay among the bases
            module.__class__ = type(kind.__name__, (kind, type(module)), {})
    return model


class _Conv(torch.autograd.Function):
    """A (transposed) convolution and the leaky ReLU behind it (slope 0: ReLU, slope 1: none).

    oneDNN can apply the activation before it writes the result. In bfloat16 a separate one takes as
    long as a large convolution.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, geometry, transposed, slope):
        stride, padding = geometry
        if transposed and padding == 1 and _has_few_channels(weight, geometry):
            out = _leaky(_to_few_channels(x, weight, bias), slope)
        elif not transposed and stride == 1 and _is_small(x, weight, geometry):
            rows = x.shape[2] + 2 * padding - weight.shape[2] + 1
            matrix = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # (Cout, k * k * Cin)
            out = F.linear(_patches(x, weight, geometry), matrix, bias)
            out = _leaky(out.view(len(x), rows, -1, len(weight)).permute(0, 3, 1, 2), slope)
        elif slope == 1 or not _FUSED.get(x.dtype):
            out = _leaky(_conv(x, weight, bias, *_settings(geometry, transposed)), slope)
        else:
            activation = ("relu", []) if slope == 0 else ("leaky_relu", [slope])
            pads = ([padding] * 2, [0, 0]) if transposed else ([padding] * 2,)
            fused = torch.ops.mkldnn._convolution_pointwise
            if transposed:
                fused = torch.ops.mkldnn._convolution_transpose_pointwise
            out = fused(x, weight, bias, *pads, [stride] * 2, [1, 1], 1, *activation, "")
        ctx.geometry, ctx.transposed, ctx.slope = geometry, transposed, slope
        ctx.save_for_backward(x, weight, None if slope == 1 else out)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, out = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = _needs(ctx)
        grad, geometry = _before_activation(grad, out, ctx.slope), ctx.geometry
        grad_x = grad_weight = grad_bias = None
        if needs_bias:
            grad_bias = grad.sum((0, 2, 3))
        if not ctx.transposed:
            if needs_x:
                grad_x = _input_gradient(x, weight, grad, geometry)
            if needs_weight:
                grad_weight = _weight_gradient(x, weight, grad, geometry)
            return grad_x, grad_weight, grad_bias, None, None, None
        # A transposed convolution has the gradients of a convolution with input and output gradient
        # swapped. oneDNN takes two to four times as long for the weight's.
        few = _has_few_channels(weight, geometry)
        if few:
            grad, weight = _fold(F.pad(grad, [geometry[1]] * 4)), _fold(weight)
            geometry = 1, 0
        if needs_x:
            grad_x = _conv(grad, weight, None, *_settings(geometry))
        if needs_weight:
            grad_weight = _weight_gradient(grad, weight, x, geometry)
            grad_weight = _unfold(grad_weight) if few else grad_weight
        return grad_x, grad_weight, grad_bias, None, None, None


def _needs(ctx) -> list[bool]:
    """Whether backward(inputs=...) uses the gradient of the input, the weight and the bias."""
    needs = list(ctx.needs_input_grad[:3])
    for i, (node, _) in enumerate(ctx.next_functions[1:3], start=1):
        needs[i] = needs[i] and torch._C._will_engine_execute_node(node)
    return needs


def _settings(geometry: Geometry, transposed: bool = False) -> tuple:
    stride, padding = geometry
    return [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], 1


def _leaky(x: Tensor, slope: float) -> Tensor:
    return x if slope == 1 else F.leaky_relu_(x, slope)


def _before_activation(grad: Tensor, out: Tensor | None, slope: float) -> Tensor:
    """The gradient before a leaky ReLU, from the gradient behind it and its output."""
    if slope == 1:
        return grad
    out = out.detach()  # the derivative of a leaky ReLU is a step, whose own derivative is 0
    if slope == 0 and grad.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        # The bits of a bfloat16, read as an integer, have its sign: half the time.
        bits = grad.view(torch.int16), out.view(torch.int16)
        return torch.ops.aten.threshold_backward(*bits, 0).view(torch.bfloat16)
    return torch.ops.aten.leaky_relu_backward(grad, out, slope, True)


def _input_gradient(x: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    stride, pad = geometry
    if stride != 1 or not _is_small(x, weight, geometry):
        covered = all(
            (grad.shape[i] - 1) * stride + weight.shape[i] - 2 * pad == x.shape[i] for i in (2, 3)
        )
        if covered and torch.is_grad_enabled():
            # This gradient is differentiated again. torch's way takes five times as long.
            return _Conv.apply(grad, weight, None, geometry, True, 1.0)
        mask = [True, False, False]
        return _conv_backward(grad, x, weight, None, *_settings(geometry), mask)[0]
    # Small maps: one product gives all patches, whose overlaps are then summed in float32.
    batch, channels, height, width = x.shape
    rows, columns = grad.shape[2:]
    matrix = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # (Cout, k * k * Cin)
    patches = grad.permute(0, 2, 3, 1).reshape(-1, len(weight)) @ matrix
    patches = patches.view(batch, rows, columns, *weight.shape[2:], channels)
    dtype = torch.promote_types(x.dtype, torch.float32)
    out = x.new_zeros(batch, height + 2 * pad, width + 2 * pad, channels, dtype=dtype)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            out[:, i : i + rows, j : j + columns] += patches[:, :, :, i, j]
    return out[:, pad : pad + height, pad : pad + width].permute(0, 3, 1, 2).to(x.dtype)


def _weight_gradient(x: Tensor, weight: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    if not _is_small(x, weight, geometry):
        mask = [False, True, False]
        return _conv_backward(grad, x, weight, None, *_settings(geometry), mask)[1]
    grad = grad.permute(0, 2, 3, 1).reshape(-1, len(weight))
    products = grad.t() @ _patches(x, weight, geometry)
    return products.view(len(weight), *weight.shape[2:], -1).permute(0, 3, 1, 2)


def _is_small(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether the output is a small map, for which oneDNN takes two to six times as long."""
    stride, padding = geometry
    rows, columns = ((x.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (2, 3))
    return rows * columns <= SMALL_MAP


def _patches(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """What the kernel sees at each position: (B, C, H, W) -> (B * positions, k * k * C)."""
    stride, padding = geometry
    x = F.pad(x, [padding] * 4).permute(0, 2, 3, 1)
    x = x.unfold(1, weight.shape[2], stride).unfold(2, weight.shape[3], stride)
    return x.permute(0, 1, 2, 4, 5, 3).reshape(-1, weight[0].numel())


def _has_few_channels(weight: Tensor, geometry: Geometry) -> bool:
    """Whether a (many, few, 4, 4) weight of stride 2 becomes 2x2 of stride 1 over 2x2 blocks."""
    few = weight.shape[1] <= FEW_CHANNELS and weight.shape[2:] == (4, 4)
    return few and geometry in ((2, 0), (2, 1))


def _fold(x: Tensor) -> Tensor:
    """Blocks of 2x2 pixels become channels: (B, C, 2H, 2W) -> (B, 4C, H, W), channels last."""
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
    """A transposed convolution to few channels: 4x4 kernel, stride 2, padding 1.

    Row 2m of the output is the sum of kernel row 1 at m and kernel row 3 at m - 1. Row 2m + 1 is
    the sum of kernel row 2 at m and kernel row 0 at m + 1. Columns follow the same rule.
    """
    if AMX and x.dtype == torch.bfloat16:
        bias = None if bias is None else bias.repeat_interleave(4)
        blocks = _conv(x, _fold(weight), bias, *_settings((1, 0), transposed=True))
        return _unfold(blocks)[:, :, 1:-1, 1:-1].contiguous()
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


def _operands(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """Converted as by autocast; views, because _needs refuses leaves."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return x, weight.view_as(weight), None if bias is None else bias.view_as(bias)


def _is_covered(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    square = len(set(layer.stride)) == len(set(layer.padding)) == 1  # false for padding "same"
    plain = layer.groups == 1 and set(layer.dilation) == {1} and set(layer.output_padding) == {0}
    return square and plain and layer.padding_mode == "zeros"


class Conv2d(nn.Conv2d):
    """nn.Conv2d with the kernels above, followed by a leaky ReLU."""

    def forward(self, x: Tensor, *, slope: float = 1.0) -> Tensor:
        if x.device.type != "cpu":  # cuDNN chooses its own kernels
            return _leaky(super().forward(x), slope)
        weight = self.weight  # read once: under spectral norm, a reading is a power iteration
        geometry = self.stride[0], self.padding[0]
        few = _has_few_channels(weight, geometry) and x.shape[2] % 2 == x.shape[3] % 2 == 0
        if not few and slope == 1 and not _is_small(x, weight, geometry):
            return self._conv_forward(x, weight, self.bias)
        x, weight, bias = _operands(x, weight, self.bias)
        if few:
            x, weight, geometry = _fold(F.pad(x, [geometry[1]] * 4)), _fold(weight), (1, 0)
        return _Conv.apply(x, weight, bias, geometry, False, slope)


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d with the kernels above."""

    def forward(self, x: Tensor, *, slope: float = 1.0) -> Tensor:
        if x.device.type != "cpu":
            return _leaky(super().forward(x), slope)
        x, weight, bias = _operands(x, self.weight, self.bias)
        return _Conv.apply(x, weight, bias, (self.stride[0], self.padding[0]), True, slope)


class Sequential(nn.Sequential):
    """nn.Sequential that computes a layer above and the activation behind it in one operator."""

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            is_fast = isinstance(layer, Conv2d | ConvTranspose2d)
            if is_fast and layers and isinstance(layers[0], ACTIVATIONS):
                x = layer(x, slope=getattr(layers.pop(0), "negative_slope", 0.0))
            else:
                x = layer(x)
        return x


def prepare_process() -> None:
    """Settings that make training on a CPU faster; torch's threads take them over at their start.

    Numbers below 1e-38 become 0. The momentum of dead units falls that far, and then a product with
    it takes ten times as long. glibc reuses the pages of large activations, which the kernel would
    zero at each step.
    """
    torch.set_flush_denormal(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:  # None on musl
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: no mapping of its own below 1 GiB
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: keep up to 1 GiB of freed memory
