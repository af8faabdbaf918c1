"""Likelihoods of images: what the decoder of a VAE says about a pixel, and the picture it draws.

Nats: summed over the pixels and channels of an image. The decoder's logits are those of a pixel's
mean (of the natural parameter for continuous_bernoulli), so that pictures are in [0, 1]. Scales are
fixed. As recon + beta KL of a Gaussian depends on beta sigma^2 alone, beta takes the place of
sigma: sigma = 0.1 with beta = 1 is beta = 0.02 here.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LAPLACE_SCALE = 1 / 3  # of disentangling-vae, so that the weights of Bernoulli losses fit
NEAR_HALF = 0.1  # logits below it take the first terms of a series, exact to 1e-11


class Likelihood(NamedTuple):
    """A pixel's -log p(x | logits) in nats, and its mean, both elementwise."""

    pixel_nll: Callable[[Tensor, Tensor], Tensor]  # of (logits, x); bernoulli has no gradient
    mean: Callable[[Tensor], Tensor]  # logits -> [0, 1]


def nll(likelihood: str, logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x | logits) of a batch in nats, for a name in LIKELIHOODS; at least in float32."""
    if likelihood == "bernoulli":
        return _BernoulliNLL.apply(logits, x)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return LIKELIHOODS[likelihood].pixel_nll(logits.to(dtype), x.to(dtype)).sum()


def _softplus(logits: Tensor, p: Tensor) -> Tensor:
    """log(1 + e^l) = max(l, 0) - log max(p, 1 - p), a seventh of torch's time; overwrites p."""
    return logits.clamp(min=0).sub_(p.sub_(0.5).abs_().add_(0.5).log_())


class _BernoulliNLL(torch.autograd.Function):
    """A faster binary_cross_entropy_with_logits: the forward pass computes the gradient too."""

    @staticmethod
    def forward(ctx, logits, x):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        wide, x = logits.to(dtype), x.to(dtype)
        p = torch.sigmoid(wide)
        if logits.requires_grad:  # rounded after the difference: 1 - p is small where x is 1
            ctx.save_for_backward((p - x).to(logits.dtype))
        return _softplus(wide, p).sum() - torch.dot(wide.reshape(-1), x.reshape(-1))

    @staticmethod
    def backward(ctx, grad):
        (residual,) = ctx.saved_tensors
        return residual * grad.to(residual.dtype), None


@torch.no_grad()
def _bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """The cross entropy, which the field also uses for grey values and colours in [0, 1]."""
    return _softplus(logits, logits.sigmoid()) - logits * x


def _gaussian(logits: Tensor, x: Tensor) -> Tensor:
    """Variance 1/2: the squared error, as in https://arxiv.org/abs/1811.12359, and a constant."""
    return (x - logits.sigmoid()).square() + 0.5 * math.log(math.pi)


def _laplace(logits: Tensor, x: Tensor) -> Tensor:
    """Scale 1/3: three times the absolute error, and a constant."""
    return (x - logits.sigmoid()).abs() / LAPLACE_SCALE + math.log(2 * LAPLACE_SCALE)


def _continuous_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """Density e^(l x) l / (e^l - 1): Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845, eq. 7-8.

    It has no lower bound on binary images. log((e^l - 1) / l) is l / 2 and an even function of l.
    """
    square, size = logits.square(), logits.abs().clamp(min=NEAR_HALF)
    even = size / 2 + (-(-size).expm1() / size).log()
    even = torch.where(logits.abs() < NEAR_HALF, square / 24 - square.square() / 2880, even)
    return logits / 2 + even - logits * x


def _continuous_bernoulli_mean(logits: Tensor) -> Tensor:
    """1 / (1 - e^-l) - 1 / l, which is 1/2 at 0."""
    is_near = logits.abs() < NEAR_HALF
    far = logits.masked_fill(is_near, 1.0)
    near = logits / 12 - logits**3 / 720
    return 0.5 + torch.where(is_near, near, 0.5 / torch.tanh(far / 2) - 1 / far)


LIKELIHOODS = {
    "bernoulli": Likelihood(_bernoulli, torch.sigmoid),
    "gaussian": Likelihood(_gaussian, torch.sigmoid),
    "laplace": Likelihood(_laplace, torch.sigmoid),
    "continuous_bernoulli": Likelihood(_continuous_bernoulli, _continuous_bernoulli_mean),
}
