"""Colours, noise and backgrounds that are drawn into the batches of sprites.

The formulas are those of disentanglement_lib 1.5 (Locatello et al. 2019),
https://github.com/google-research/disentanglement_lib, data/ground_truth/dsprites.py. Its random
numbers come from a stream; here each is a function of (key, image), whatever the batch or device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from data.cache import checksum

PATCH = 64  # pixels, the side of a sprite image
Uniform = Callable[[int], Tensor]  # n -> (B, n) float32 in [0, 1)


@dataclass(frozen=True, eq=False)
class Decoration:
    """A function that decorates sprites, and the picture that it needs, if any."""

    draw: Callable[..., Tensor]
    pictures: tuple[Tensor, ...] = ()

    def __repr__(self) -> str:
        return " ".join([self.draw.__name__, *(checksum(p.cpu().numpy()) for p in self.pictures)])

    def __call__(self, sprites: Tensor, index: Tensor, key: int | Tensor) -> Tensor:
        """Decorate sprites (B, 1, 64, 64), the images at index (B,): (B, 3, 64, 64) float32."""
        return self.draw(sprites, partial(uniform, key, index), *self.pictures)

    def to(self, device: torch.device | str) -> "Decoration":
        return Decoration(self.draw, tuple(picture.to(device) for picture in self.pictures))


def colour(sprites: Tensor, uniform: Uniform) -> Tensor:
    """Give each sprite a colour: its channels are multiplied by U(0.5, 1)."""
    return sprites * (0.5 + 0.5 * uniform(3))[:, :, None, None]


def noisy(sprites: Tensor, uniform: Uniform) -> Tensor:
    """Add U(0, 1) to every channel of every pixel, at most 1."""
    noise = uniform(3 * sprites[0].numel()).view(-1, 3, *sprites.shape[2:])
    return noise.add_(sprites).clamp_(max=1)


def scream(sprites: Tensor, uniform: Uniform, picture: Tensor) -> Tensor:
    """Draw (a random patch of a picture + U(0, 1) a channel) / 2, inverted where the sprite is.

    Args:
        picture: (H, W, 3) uint8, more than 64 pixels high and wide.
    """
    (height, width, _), numbers = picture.shape, uniform(5)
    side = torch.arange(PATCH, device=numbers.device)
    rows = (numbers[:, :1] * (height - PATCH)).long() + side  # (B, 64)
    columns = (numbers[:, 1:2] * (width - PATCH)).long() + side
    patch = picture[rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, 3, 64, 64)
    background = (patch.contiguous().float() / 255 + numbers[:, 2:, None, None]) / 2
    return torch.where(sprites == 1, 1 - background, background)


def uniform(key: int | Tensor, index: Tensor, n: int) -> Tensor:
    """Return n numbers in [0, 1) for each image, equal on every device: (B, n) float32.

    Args:
        key: 63 bits that determine all numbers together with the index (B,) int64 of the images.
    """
    state = _hash(_hash((index ^ (key >> 32)).int()) ^ (key & 0x7FFFFFFF))
    words = _hash(state[:, None] ^ _hash(torch.arange(n, dtype=torch.int32, device=index.device)))
    return (words >> 8).float().mul_(2.0**-24).add_(0.5)  # of the upper 24 bits with their sign


def _hash(x: Tensor) -> Tensor:
    """Mix the bits of int32, which wraps: lowbias32, https://nullprogram.com/blog/2018/07/31/."""
    x = x ^ ((x >> 16) & 0xFFFF)  # the mask makes a shift logical
    x.mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15) & 0x1FFFF)
    x.mul_(0x846CA68B - 2**32)
    return x.bitwise_xor_((x >> 16) & 0xFFFF)
