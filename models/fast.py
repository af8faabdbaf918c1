"""The operators that decide training speed on a CPU: same maths as torch's layers, other kernels.

Each one is here because it was measured (benchmarks/train_speed.py) and each is held against the
plain layer and against finite differences by tests/test_fast.py.
"""

import ctypes
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_conv = torch.ops.aten.convolution
_conv_backward = torch.ops.aten.convolution_backward
FEW_CHANNELS = 4  # up to here the matrix product below beats the library's transposed convolution


class _ConvTranspose(torch.autograd.Function):
    """Transposed convolution whose gradients are those of the convolution it is the adjoint of.

    Why: the library's weight gradient of a transposed convolution takes two to four times as long
    as the same sums taken as the weight gradient of a convolution with input and output gradient
    swapped, and its bias gradient costs as much again; a matrix product does the latter.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = [stride, stride], [padding, padding], [1, 1]
        if weight.shape[1] <= FEW_CHANNELS and weight.shape[2:] == (4, 4) and stride == 2:
            return _overlap_add(x, weight, bias)
        return _conv(x, weight, bias, *ctx.geometry, True, [0, 0], 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _conv(grad, weight, None, *ctx.geometry, False, [0, 0], 1)
        if ctx.needs_input_grad[1]:
            _, grad_weight, _ = _conv_backward(
                x, grad, weight, [0], *ctx.geometry, False, [0, 0], 1, [False, True, False]
            )
        if ctx.needs_input_grad[2]:
            columns = grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1])  # (BHW, C)
            grad_bias = (columns.new_ones(1, len(columns)) @ columns)[0]
        return grad_x, grad_weight, grad_bias, None, None


def _overlap_add(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """4x4, stride 2, padding 1 transposed convolution to few channels: one product, then sums.

    Row 2m of the output is the sum of kernel row 1 at m and kernel row 3 at m - 1; row 2m + 1 of
    kernel row 2 at m and kernel row 0 at m + 1; likewise for columns.
    """
    batch, _, height, width = x.shape
    channels = weight.shape[1]
    kernel = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # (Cin, 4 * 4 * C)
    patches = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) @ kernel  # (BHW, 4 * 4 * C)
    patches = patches.view(batch, height, width, 4, 4 * channels)
    rows = patches[:, :, :, 1:3].permute(0, 1, 3, 2, 4).contiguous()  # (B, H, 2, W, 4C)
    rows[:, 1:, 0] += patches[:, :-1, :, 3]
    rows[:, :-1, 1] += patches[:, 1:, :, 0]
    rows = rows.view(batch, 2 * height, width, 4, channels)
    out = rows[:, :, :, 1:3] + bias  # (B, 2H, W, 2, C)
    out[:, :, 1:, 0] += rows[:, :, :-1, 3]
    out[:, :, :-1, 1] += rows[:, :, 1:, 0]
    return out.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d with the kernels above: the same parameters, names and initial values."""

    def forward(self, x: Tensor) -> Tensor:  # (B, Cin, H, W) -> (B, Cout, H', W')
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        if x.device.type == "cuda":  # cuDNN picks its own kernels
            return F.conv_transpose2d(x, weight, bias, self.stride, self.padding)
        return _ConvTranspose.apply(x, weight, bias, self.stride[0], self.padding[0])


class _BernoulliNLL(torch.autograd.Function):
    """Sum over all pixels of -log p(x | logits), its gradient kept from the forward pass."""

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:
        if logits.requires_grad:
            ctx.save_for_backward(torch.sigmoid(logits).sub_(x))
        logits = logits.float()
        # log(1 + e^l) - x l = max(l, 0) - log sigmoid(|l|) - x l, stable for every l
        log_sigmoid = torch.sigmoid(logits.abs()).log_()
        return (logits.clamp(min=0).sub_(log_sigmoid)).sum() - torch.dot(
            logits.reshape(-1), x.float().reshape(-1)
        )

    @staticmethod
    def backward(ctx, grad: Tensor):
        (residual,) = ctx.saved_tensors
        return residual * grad.to(residual.dtype), None


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """Negative log-likelihood of images under a Bernoulli decoder, summed over the batch.

    logits, x: (B, C, H, W), x in [0, 1]; returns a 0-d float32 tensor, nats. x takes no gradient.
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
