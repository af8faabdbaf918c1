"""The operators that decide training speed on a CPU: same maths as torch's layers, other kernels.

Each is held against the plain layer and against finite differences by tests/test_fast.py.
"""

import ctypes
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_conv = torch.ops.aten.convolution
_conv_backward = torch.ops.aten.convolution_backward
FEW_CHANNELS = 4  # up to here the products below beat the library's kernels


class _ConvTranspose(torch.autograd.Function):
    """Transposed convolution whose gradients are those of the convolution it is the adjoint of.

    Why: the library's weight gradient of a transposed convolution takes two to four times as long
    as the same sums taken as the weight gradient of a convolution with input and output gradient
    swapped, and its bias gradient costs as much again; a plain sum does the latter.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = [stride, stride], [padding, padding], [1, 1]
        if _is_few(weight, *ctx.geometry[:2]) and padding == 1:
            return _overlap_add(x, weight, bias)
        return _conv(x, weight, bias, *ctx.geometry, True, [0, 0], 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _conv(grad, weight, None, *ctx.geometry, False, [0, 0], 1)
        if ctx.needs_input_grad[1] and _is_few(weight, *ctx.geometry[:2]):
            grad_weight = _patch_products(grad, x, *ctx.geometry[1])
        elif ctx.needs_input_grad[1]:
            _, grad_weight, _ = _conv_backward(
                x, grad, weight, [0], *ctx.geometry, False, [0, 0], 1, [False, True, False]
            )
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


class _FewChannelConv(torch.autograd.Function):
    """4x4, stride 2 convolution of images of few channels, whose gradients are matrix products.

    Why: with one channel the library's gradients of weight and input take five to seven times as
    long as these, and are a fifth of a float32 step of the VAE on a CPU with AVX2.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _conv(x, weight, bias, [2, 2], [padding] * 2, [1, 1], False, [0, 0], 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            ring = 1 - ctx.padding  # of zeros: what the sums below would cut off
            grad_x = _overlap_add(F.pad(grad, [ring] * 4) if ring else grad, weight, None)
            grad_x = grad_x[..., ring : grad_x.shape[2] - ring, ring : grad_x.shape[3] - ring]
        if ctx.needs_input_grad[1]:
            grad_weight = _patch_products(x, grad, ctx.padding, ctx.padding)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None


def _is_few(weight: Tensor, stride: list[int], padding: list[int]) -> bool:
    """Whether the products take this (many, few, k, k) weight."""
    few = weight.shape[1] <= FEW_CHANNELS and weight.shape[2:] == (4, 4)
    return few and tuple(stride) == (2, 2) and tuple(padding) in ((0, 0), (1, 1))


def _patch_products(large: Tensor, small: Tensor, *padding: int) -> Tensor:
    """Sum over images and positions of small (B, M, H, W) times the 4x4 patches of large
    (B, C, 2H, 2W), every second row and column: (M, C, 4, 4)."""
    batch, many = small.shape[:2]
    rows, columns = padding
    patches = F.pad(large, [columns, columns, rows, rows]).unfold(2, 4, 2).unfold(3, 4, 2)
    patches = patches.permute(0, 1, 4, 5, 2, 3)  # (B, C, 4, 4, H, W): copied in rows of W
    patches = patches.reshape(batch, -1, small.shape[2] * small.shape[3])
    small = small.permute(0, 2, 3, 1).reshape(batch, -1, many)
    return torch.bmm(patches, small).sum(0).t().reshape(many, -1, 4, 4)


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


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d with the kernels above: the same parameters, names and initial values."""

    def forward(self, x: Tensor) -> Tensor:  # (B, Cin, H, W) -> (B, Cout, H', W')
        if x.device.type == "cuda":  # cuDNN picks its own kernels
            return super().forward(x)
        x, weight, bias = _as_autocast(x, self.weight, self.bias)
        return _ConvTranspose.apply(x, weight, bias, self.stride[0], self.padding[0])


def _as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
    """What autocast would make of the arguments of a convolution."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class Conv2d(nn.Conv2d):
    """nn.Conv2d with the kernels above, for a layer that takes images of few channels."""

    def forward(self, x: Tensor) -> Tensor:  # (B, Cin, H, W) -> (B, Cout, H', W')
        few = _is_few(self.weight, self.stride, self.padding)
        if x.device.type == "cuda" or not few or x.shape[2] % 2 or x.shape[3] % 2:
            return super().forward(x)
        return _FewChannelConv.apply(*_as_autocast(x, self.weight, self.bias), self.padding[0])


class _BernoulliNLL(torch.autograd.Function):
    """Sum over all pixels of -log p(x | logits), its gradient kept from the forward pass."""

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:
        if logits.requires_grad:
            ctx.save_for_backward(torch.sigmoid(logits).sub_(x))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # log(1 + e^l) - x l = max(l, 0) - log sigmoid(|l|) - x l, stable for every l
        log_sigmoid = torch.sigmoid(logits.abs()).log_()
        return (logits.clamp(min=0).sub_(log_sigmoid)).sum() - torch.dot(
            logits.reshape(-1), x.to(logits.dtype).reshape(-1)
        )

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
