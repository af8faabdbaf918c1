"""The networks of InfoGAN; contract: GAN_NETWORKS[name] -> GanNetwork.

A generator maps (B, inputs) to images (B, C, 64, 64); a discriminator is one trunk with the heads
of D and Q. They are (nn.)Sequential whose items are the rows of the published tables.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.fast import Conv2d, ConvTranspose2d, Sequential
from models.networks import SpatialBroadcast

INIT_STD = 0.02  # of all weights of "seed", "sn" and "small", as in the code of both papers


class Discriminator(nn.Module):
    """D and Q on one shared trunk."""

    def __init__(self, trunk: nn.Module, d_head: nn.Module, q_head: nn.Module):
        super().__init__()
        self.trunk, self.d_head, self.q_head = trunk, d_head, q_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, 64, 64) in the network's range -> D's logits (B,), Q's output (B, P), fp32."""
        features = self.trunk(x)
        return self.d_head(features).float().flatten(), self.q_head(features).float().flatten(1)


def seed_generator(inputs: int, channels: int) -> nn.Sequential:
    """Generator of the seed's table, images in [-1, 1].

    1x1 upconv 256, 256, then 4x4 upconv 128 (1 -> 4), 64, 64, 32, channels (-> 8, 16, 32, 64),
    batch norm and ReLU between (in the order of InfoGAN's own code), tanh. On a 1x1 map an upconv
    is a matrix product and its stride changes nothing, so the first three rows are products here.
    The last row names no stride; it must be 2 to reach 64.
    """

    def row(*layers: nn.Module) -> nn.Sequential:
        return nn.Sequential(*layers, nn.ReLU(inplace=True))

    def upconv(inputs: int, outputs: int) -> nn.Sequential:
        layer = ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        return row(layer, nn.BatchNorm2d(outputs))

    to_map = nn.Linear(256, 128 * 4 * 4, bias=False), nn.Unflatten(1, (128, 4, 4))
    return nn.Sequential(
        row(nn.Linear(inputs, 256, bias=False), nn.BatchNorm1d(256)),  # 1
        row(nn.Linear(256, 256, bias=False), nn.BatchNorm1d(256)),  # 1
        row(*to_map, nn.BatchNorm2d(128)),  # 4
        upconv(128, 64),  # 8
        upconv(64, 64),  # 16
        upconv(64, 32),  # 32
        nn.Sequential(ConvTranspose2d(32, channels, 4, 2, 1), nn.Tanh()),  # 64
    )


def _seed_conv(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    layer = Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1, inplace=True))


def _seed_trunk(channels: int) -> nn.Sequential:
    return nn.Sequential(
        Sequential(Conv2d(channels, 64, 4, 2), nn.LeakyReLU(0.1, inplace=True)),  # 31
        _seed_conv(64, 128, 4, 2, 0),  # 14
        _seed_conv(128, 256, 4, 2, 0),  # 6
        _seed_conv(256, 256, 4, 1, 0),  # 3
        _seed_conv(256, 256, 4, 1, 1),  # 2
    )


def seed_discriminator(channels: int, parameters: int) -> Discriminator:
    """D and Q of the seed's table, images in [-1, 1].

    4x4 conv 64, 128, 256 (stride 2), 256 (stride 1), 256 (stride 1, padding 1): maps of 31, 14, 6,
    3, 2; batch norm from the second on, leaky ReLU of InfoGAN's slope .1. D: 2x2 conv to a logit.
    Q: 2x2 conv 128, batch norm, leaky ReLU, then the parameters of the codes.
    """
    q_head = nn.Sequential(_seed_conv(256, 128, 2, 1, 0), nn.Conv2d(128, parameters, 1))
    return Discriminator(_seed_trunk(channels), nn.Conv2d(256, 1, 2), q_head)


def seed_pair_discriminator(channels: int, codes: int) -> nn.Sequential:
    """The seed's trunk on two images stacked as channels -> logits (B, codes)."""
    return nn.Sequential(_seed_trunk(2 * channels), nn.Conv2d(256, codes, 2), nn.Flatten())


def sn_generator(inputs: int, channels: int) -> nn.Sequential:
    """Generator of InfoGAN-CR on dSprites (Lin et al. 2020), images in [0, 1].

    FC 128, FC 4*4*64 (ReLU), 4x4 stride-2 upconv 64, 32, 32 (leaky ReLU .2) and channels, batch
    norm after the activation, sigmoid.
    """

    def dense(inputs: int, outputs: int, *shape: nn.Module) -> nn.Sequential:
        layer = nn.Linear(inputs, outputs)
        return nn.Sequential(layer, nn.ReLU(inplace=True), nn.BatchNorm1d(outputs), *shape)

    def upconv(inputs: int, outputs: int) -> nn.Sequential:
        layer = ConvTranspose2d(inputs, outputs, 4, 2, 1)
        return Sequential(layer, nn.LeakyReLU(0.2, inplace=True), nn.BatchNorm2d(outputs))

    return nn.Sequential(
        dense(inputs, 128),
        dense(128, 4 * 4 * 64, nn.Unflatten(1, (64, 4, 4))),  # 4
        upconv(64, 64),  # 8
        upconv(64, 32),  # 16
        upconv(32, 32),  # 32
        nn.Sequential(ConvTranspose2d(32, channels, 4, 2, 1), nn.Sigmoid()),  # 64
    )


def _spectral(layer: nn.Module) -> nn.Module:
    nn.init.normal_(layer.weight, std=INIT_STD)  # now: the norm's vectors start from these weights
    return spectral_norm(layer)


def _as_it_is(layer: nn.Module) -> nn.Module:
    return layer


def _sn_row(layer: nn.Module) -> Sequential:
    return Sequential(layer, nn.LeakyReLU(0.2, inplace=True))


def _sn_trunk(channels: int, norm: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        _sn_row(norm(Conv2d(channels, 32, 4, 2, 1))),  # 32
        _sn_row(norm(Conv2d(32, 32, 4, 2, 1))),  # 16
        _sn_row(norm(Conv2d(32, 64, 4, 2, 1))),  # 8
        _sn_row(norm(Conv2d(64, 64, 4, 2, 1))),  # 4
        nn.Flatten(),
        _sn_row(norm(nn.Linear(64 * 4 * 4, 128))),
    )


def sn_discriminator(
    channels: int, parameters: int, norm: Callable[[nn.Module], nn.Module] = _spectral
) -> Discriminator:
    """D and Q of InfoGAN-CR on dSprites, spectral norm on every layer, images in [0, 1].

    4x4 stride-2 conv 32, 32, 64, 64 and FC 128, leaky ReLU .2; D: FC 1; Q: FC 128, FC parameters.
    """
    q_head = nn.Sequential(_sn_row(norm(nn.Linear(128, 128))), norm(nn.Linear(128, parameters)))
    return Discriminator(_sn_trunk(channels, norm), norm(nn.Linear(128, 1)), q_head)


def sn_pair_discriminator(
    channels: int, codes: int, norm: Callable[[nn.Module], nn.Module] = _spectral
) -> nn.Sequential:
    """InfoGAN-CR's trunk on two images stacked as channels -> logits (B, codes)."""
    return nn.Sequential(_sn_trunk(2 * channels, norm), nn.Linear(128, codes))


def small_discriminator(channels: int, parameters: int) -> Discriminator:
    """`sn_discriminator` without the norm: D is stronger and wants instance noise."""
    return sn_discriminator(channels, parameters, _as_it_is)


def small_pair_discriminator(channels: int, codes: int) -> nn.Sequential:
    """`sn_pair_discriminator` without the norm."""
    return sn_pair_discriminator(channels, codes, _as_it_is)


def broadcast_generator(inputs: int, channels: int) -> nn.Sequential:
    """A generator that is told where it draws, images in [0, 1].

    Spatial broadcast to 128 maps of 16x16, 1x1 conv 64, 64, 4x4 stride-2 upconv 32 and channels;
    leaky ReLU .2, batch norm before it, sigmoid. Given the true factors and the true images as
    targets, it comes nearer to them than the other generators here, with fewer parameters.
    """

    def row(layer: nn.Module) -> nn.Sequential:
        norm = nn.BatchNorm2d(layer.out_channels)
        return nn.Sequential(layer, norm, nn.LeakyReLU(0.2, inplace=True))

    # The first activation is not in place: that of a permuted view would turn its gradient's memory
    # format, which takes thirty times as long (6 % of a step).
    return nn.Sequential(
        nn.Sequential(SpatialBroadcast(inputs, 128, 16), nn.LeakyReLU(0.2)),  # 16
        row(nn.Conv2d(128, 64, 1)),
        row(nn.Conv2d(64, 64, 1)),
        row(ConvTranspose2d(64, 32, 4, 2, 1)),  # 32
        nn.Sequential(ConvTranspose2d(32, channels, 4, 2, 1), nn.Sigmoid()),  # 64
    )


class GanNetwork(NamedTuple):
    """One architecture.

    low: images are in [low, 1]. joint: D takes real and fake images in one forward (but in steps
    with R1), which is exact only without batch norm. q_owner: the optimiser that trains Q's own
    layers, "g" or "d". init_std: standard deviation of all initial weights, biases 0; None: each
    layer's own.
    """

    generator: Callable[[int, int], nn.Module]  # (inputs, channels)
    discriminator: Callable[[int, int], Discriminator]  # (channels, parameters of the codes)
    pair_discriminator: Callable[[int, int], nn.Module]  # (channels, codes)
    low: float
    joint: bool
    q_owner: str
    init_std: float | None = INIT_STD


GAN_NETWORKS = {
    "seed": GanNetwork(
        seed_generator, seed_discriminator, seed_pair_discriminator, -1.0, False, "g"
    ),
    "sn": GanNetwork(sn_generator, sn_discriminator, sn_pair_discriminator, 0.0, True, "d"),
    "small": GanNetwork(
        sn_generator, small_discriminator, small_pair_discriminator, 0.0, True, "d"
    ),
    "broadcast": GanNetwork(
        broadcast_generator, small_discriminator, small_pair_discriminator, 0.0, True, "d", None
    ),
}
