"""The networks of InfoGAN, as in docs/architectures.md; comments give the side of an output."""

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.networks import Shape, SpatialBroadcast, conv, depth_of, upconv

INIT_STD = 0.02  # of the first weights of "seed" and "sn", as in the code of both papers
Norm = Callable[[nn.Module], nn.Module]


class Discriminator(nn.Module):
    """D and Q on one shared trunk."""

    def __init__(self, trunk: nn.Module, d_head: nn.Module, q_head: nn.Module):
        super().__init__()
        self.trunk, self.d_head, self.q_head = trunk, d_head, q_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) in the network's range -> D's logits (B,), Q's output (B, P), float32."""
        features = self.trunk(x)
        return self.d_head(features).float().flatten(), self.q_head(features).float().flatten(1)


def _leaky(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope, inplace=True)


def seed_generator(inputs: int, image_shape: Shape) -> nn.Sequential:
    """1x1 upconv 256, 256, 4x4 upconv 128, 64, 64, 32, C; batch norm and ReLU between, tanh.

    On a 1x1 map an upconv is a matrix product, so the first three rows are products.
    """

    def row(*layers: nn.Module) -> nn.Sequential:
        return nn.Sequential(*layers, nn.ReLU(inplace=True))

    def dense(inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs, bias=False)

    widths = [128] + [64] * (depth_of(image_shape) - 2) + [32]
    return nn.Sequential(
        row(dense(inputs, 256), nn.BatchNorm1d(256)),  # 1
        row(dense(256, 256), nn.BatchNorm1d(256)),  # 1
        row(dense(256, 128 * 4 * 4), nn.Unflatten(1, (128, 4, 4)), nn.BatchNorm2d(128)),  # 4
        *(row(upconv(i, o, bias=False), nn.BatchNorm2d(o)) for i, o in pairwise(widths)),
        nn.Sequential(upconv(32, image_shape[0]), nn.Tanh()),  # 64
    )


def _seed_conv(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), _leaky(0.1))


def seed_discriminator(image_shape: Shape, parameters: int) -> Discriminator:
    """4x4 conv 64, 128, 256 (stride 2), 256, 256; batch norm from the second on; leaky ReLU 0.1.

    D: 2x2 conv to a logit. Q: 2x2 conv 128, batch norm, leaky ReLU, the codes' parameters.
    """
    widths = [64, 128, 256, 256][: depth_of(image_shape) - 1]
    q_head = nn.Sequential(_seed_conv(256, 128, 2, 1, 0), nn.Conv2d(128, parameters, 1))
    trunk = nn.Sequential(
        nn.Sequential(conv(image_shape[0], 64, padding=0), _leaky(0.1)),  # 31
        *(_seed_conv(*pair, 4, 2, 0) for pair in pairwise(widths)),  # 14, 6
        _seed_conv(widths[-1], 256, 4, 1, 0),  # 3
        _seed_conv(256, 256, 4, 1, 1),  # 2
    )
    return Discriminator(trunk, nn.Conv2d(256, 1, 2), q_head)


def sn_generator(inputs: int, image_shape: Shape) -> nn.Sequential:
    """FC 128, FC 4*4*64 (ReLU), 4x4 upconv 64, 32, 32 (leaky ReLU 0.2), C, sigmoid; batch norm."""

    def dense(inputs: int, outputs: int, *shape: nn.Module) -> nn.Sequential:
        layers = nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.BatchNorm1d(outputs)
        return nn.Sequential(*layers, *shape)

    def up(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(upconv(inputs, outputs), _leaky(0.2), nn.BatchNorm2d(outputs))

    widths = [64, 64] + [32] * (depth_of(image_shape) - 2)
    return nn.Sequential(
        dense(inputs, 128),
        dense(128, 4 * 4 * 64, nn.Unflatten(1, (64, 4, 4))),  # 4
        *(up(*pair) for pair in pairwise(widths)),  # 8, 16, 32
        nn.Sequential(upconv(32, image_shape[0]), nn.Sigmoid()),  # 64
    )


def _spectral(layer: nn.Module) -> nn.Module:
    nn.init.normal_(layer.weight, std=INIT_STD)  # first: the norm's vectors start from the weights
    return spectral_norm(layer)


def _no_norm(layer: nn.Module) -> nn.Module:
    return layer


def _sn_trunk(channels: int, depth: int, norm: Norm) -> nn.Sequential:
    """4x4 conv 32, 32, 64, 64 (stride 2) and FC 128, leaky ReLU 0.2."""
    widths = [channels] + [32] * (depth - 2) + [64, 64]
    rows = [nn.Sequential(norm(conv(*pair)), _leaky(0.2)) for pair in pairwise(widths)]
    last = nn.Sequential(norm(nn.Linear(64 * 4 * 4, 128)), _leaky(0.2))
    return nn.Sequential(*rows, nn.Flatten(), last)  # 32, 16, 8, 4


def sn_discriminator(image_shape: Shape, parameters: int, norm: Norm = _spectral) -> Discriminator:
    """The trunk, with a norm on every layer. D: FC to a logit. Q: FC 128, FC."""
    q_row = nn.Sequential(norm(nn.Linear(128, 128)), _leaky(0.2))
    q_head = nn.Sequential(q_row, norm(nn.Linear(128, parameters)))
    trunk = _sn_trunk(image_shape[0], depth_of(image_shape), norm)
    return Discriminator(trunk, norm(nn.Linear(128, 1)), q_head)


def pair_discriminator(image_shape: Shape, codes: int) -> nn.Sequential:
    """The trunk of "broadcast" on two images stacked as channels -> logits (B, codes)."""
    trunk = _sn_trunk(2 * image_shape[0], depth_of(image_shape), _no_norm)
    return nn.Sequential(trunk, nn.Linear(128, codes))


def broadcast_generator(inputs: int, image_shape: Shape) -> nn.Sequential:
    """Spatial broadcast to 128 maps of 16x16, 1x1 conv 64, 64, 4x4 upconv 32, C, sigmoid."""

    def row(layer: nn.Module, outputs: int) -> nn.Sequential:
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), _leaky(0.2))

    widths = [64] + [32] * (depth_of(image_shape) - 3)
    return nn.Sequential(
        # in place on a permuted view, this activation would change the gradient's memory format
        nn.Sequential(SpatialBroadcast(inputs, 128, 16), nn.LeakyReLU(0.2)),  # 16
        row(nn.Conv2d(128, 64, 1), 64),  # 16
        row(nn.Conv2d(64, 64, 1), 64),  # 16
        *(row(upconv(i, o), o) for i, o in pairwise(widths)),  # 32
        nn.Sequential(upconv(widths[-1], image_shape[0]), nn.Sigmoid()),  # 64
    )


class GanNetwork(NamedTuple):
    generator: Callable[[int, Shape], nn.Module]  # (inputs, image_shape)
    discriminator: Callable[[Shape, int], Discriminator]  # (image_shape, parameters of the codes)
    low: float = 0.0  # images are in [low, 1]
    joint: bool = True  # D takes real and fake images in one batch, exact without batch norm only
    q_owner: str = "d"  # the optimiser of Q's own layers, "g" or "d"
    init_std: float | None = INIT_STD  # of all first weights, biases 0; None: each layer's own


GAN_NETWORKS = {
    "seed": GanNetwork(seed_generator, seed_discriminator, low=-1.0, joint=False, q_owner="g"),
    # InfoGAN-CR on dSprites: https://arxiv.org/abs/1906.06034
    "sn": GanNetwork(sn_generator, sn_discriminator),
    # the generator of https://arxiv.org/abs/1901.07017, the discriminators of "sn" without norm
    "broadcast": GanNetwork(
        broadcast_generator, functools.partial(sn_discriminator, norm=_no_norm), init_std=None
    ),
}
