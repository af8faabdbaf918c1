"""The networks of the VAE: NETWORKS[name](image_shape, latent_dim) -> (encoder, decoder).

Encoder: images (B, C, H, W) in [0, 1] -> mu and logvar, each (B, D) float32. Decoder: codes (B, D)
-> logits (B, C, H, W). Layers are given for images of 64x64 pixels.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]  # of an image: channels, height, width
conv = partial(nn.Conv2d, kernel_size=4, stride=2, padding=1)
upconv = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
DEPTHS = {32: 3, 64: 4, 128: 5}  # side in pixels -> layers of stride 2 from an image to a 4x4 map


def depth_of(image_shape: Shape) -> int:
    _, height, width = image_shape
    if height != width or height not in DEPTHS:
        raise ValueError(f"dataset: images of {height}x{width}; allowed: 32x32, 64x64, 128x128")
    return DEPTHS[height]


def relu_layers(layer: Callable[[int, int], nn.Module], widths: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [layer(inputs, outputs), nn.ReLU(inplace=True)]
    return layers


class Encoder(nn.Module):
    """Image to the parameters of a diagonal Gaussian: a trunk (B, width), then FC 2 * D."""

    def __init__(self, trunk: list[nn.Module], width: int, latent_dim: int):
        super().__init__()
        self.trunk = nn.Sequential(*trunk)
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)  # (B, width)
        with torch.autocast(x.device.type, enabled=False):  # codes keep full precision
            return self.head(h.float()).chunk(2, dim=1)


def conv_encoder(image_shape: Shape, latent_dim: int) -> Encoder:
    """Conv 32, 32, 32, 64, FC 256, FC 2 * D."""
    layers = relu_layers(conv, [image_shape[0]] + [32] * (depth_of(image_shape) - 1) + [64])
    layers += [nn.Flatten(), *relu_layers(nn.Linear, [64 * 4 * 4, 256])]
    return Encoder(layers, 256, latent_dim)


def linear_layers(network: nn.Module) -> list[nn.Linear]:
    """The linear layers of a network, in their order."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def seed(image_shape: Shape, latent_dim: int) -> tuple[nn.Module, nn.Module]:
    """Encoder; FC 256, FC 256 as 16 maps of 4x4, upconv 32, 32, 32, C.

    Close to Higgins et al. 2017, table 1: https://openreview.net/forum?id=Sy2fzU9gl
    """
    encoder = conv_encoder(image_shape, latent_dim)
    return encoder, nn.Sequential(
        *relu_layers(nn.Linear, [latent_dim, 256, 256]),
        nn.Unflatten(1, (16, 4, 4)),
        *relu_layers(upconv, [16] + [32] * (depth_of(image_shape) - 1)),
        upconv(32, image_shape[0]),
    )


class SpatialBroadcast(nn.Module):
    """A vector (B, inputs) copied to every position of a map (B, outputs, side, side).

    A 1x1 convolution of the copies and of two channels of coordinates in [-1, 1], row first, as
    the sum of two products.
    """

    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__()
        line = torch.linspace(-1, 1, side)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
        self.register_buffer("grid", grid, persistent=False)  # (side, side, 2)
        self.vector = nn.Linear(inputs, outputs)
        self.place = nn.Linear(2, outputs, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        maps = self.vector(z)[:, None, None] + self.place(self.grid)  # (B, side, side, outputs)
        return maps.permute(0, 3, 1, 2)


def broadcast(image_shape: Shape, latent_dim: int) -> tuple[nn.Module, nn.Module]:
    """Encoder; spatial broadcast to 128 maps of 16x16, 1x1 conv 64, 64, upconv 32, C.

    It learns position first. Watters et al. 2019: https://arxiv.org/abs/1901.07017
    """
    encoder = conv_encoder(image_shape, latent_dim)
    widths = [64] + [32] * (depth_of(image_shape) - 3)
    return encoder, nn.Sequential(
        SpatialBroadcast(latent_dim, 128, 16),
        nn.ReLU(),  # in place on a permuted view, it would change the gradient's memory format
        *relu_layers(partial(nn.Conv2d, kernel_size=1), [128, 64, 64]),
        *relu_layers(upconv, widths),
        upconv(widths[-1], image_shape[0]),
    )


class AffineDecoder(nn.Module):
    """Code to logits: a sprite of half the image's side, placed by an affine map.

    Five latents are the pose: a spatial transformer (https://arxiv.org/abs/1506.02025), as in
    spatial-VAE (https://arxiv.org/abs/1909.11663). The stretch and all further latents draw the
    sprite: a blob plus FC 256, FC 512, upconv 32, 32, C, whose last layer starts at 0.
    """

    pose = ("x", "y", "size", "angle", "stretch")

    def __init__(self, image_shape: Shape, latent_dim: int):
        super().__init__()
        if latent_dim < len(self.pose):
            raise ValueError(
                f"model.latent_dim: {latent_dim} is not allowed with network affine; "
                f"allowed: {len(self.pose)} or more"
            )
        channels, self.side, _ = image_shape
        last = upconv(32, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.draw = nn.Sequential(
            *relu_layers(nn.Linear, [latent_dim - len(self.pose) + 1, 256, 512]),
            nn.Unflatten(1, (32, 4, 4)),
            *relu_layers(upconv, [32] * (depth_of(image_shape) - 1)),
            last,
        )
        # logits of a disc with soft edges, a quarter of the sprite, on a background of 0.2 %
        square = torch.linspace(-1, 1, self.side // 2).square()
        blob = 8 * torch.exp(-(square[:, None] + square) / 0.32)
        self.blob = nn.Parameter(blob.repeat(channels, 1, 1))
        self.background = nn.Parameter(torch.full((channels, 1, 1), -6.0))

    def forward(self, z: Tensor) -> Tensor:
        sprite, size = self.sprite(z), (len(z), 1, self.side, self.side)
        with torch.autocast(z.device.type, enabled=False):  # positions need single precision
            grid = F.affine_grid(self.place(z), size, align_corners=False)
            return self.background + F.grid_sample(sprite, grid, align_corners=False)

    def sprite(self, z: Tensor) -> Tensor:
        """z (B, D) -> logits of the sprite above the background's: (B, C, side / 2, side / 2)."""
        blob = sum(self.blob.rot90(turns, (1, 2)) for turns in range(4)) / 4
        sprite = blob + self.draw(z[:, len(self.pose) - 1 :]).float()
        # Remove what changes its sign under a quarter turn: two angles would show one ellipse.
        turned = [sprite.rot90(turns, (2, 3)) for turns in range(4)]
        return sprite - (turned[0] - turned[1] + turned[2] - turned[3]) / 4

    def place(self, z: Tensor) -> Tensor:
        """z (B, D) -> the affine map from image to sprite, both in [-1, 1]: (B, 2, 3)."""
        x, y, size, angle, stretch = z[:, : len(self.pose)].float().unbind(1)
        shift = 0.3 * torch.stack([x, y], 1)[:, :, None]  # N(0, 1) stays inside the image
        angle = 0.5 * angle  # radians, clockwise; a unit of noise leaves a direction to learn
        stretch = 0.7 * torch.sigmoid(2 * stretch)  # 0.35 at first: the sprite has an axis
        zoom = 2 * torch.exp(-0.5 * torch.tanh(0.5 * size))  # bounded, or it shrinks to nothing
        along = torch.stack([angle.cos(), angle.sin()], 1) * (zoom * torch.exp(-stretch))[:, None]
        across = torch.stack([-angle.sin(), angle.cos()], 1) * (zoom * torch.exp(stretch))[:, None]
        linear = torch.stack([along, across], 1)
        return torch.cat([linear, -linear @ shift], 2)


def affine(image_shape: Shape, latent_dim: int) -> tuple[nn.Module, nn.Module]:
    """Encoder; a decoder with the pose of a sprite built in."""
    return conv_encoder(image_shape, latent_dim), AffineDecoder(image_shape, latent_dim)


def fc(image_shape: Shape, latent_dim: int) -> tuple[nn.Module, nn.Module]:
    """FC 1200, 1200, 2 * D with ReLU; FC 1200, 1200, 1200 with tanh, FC of all pixels.

    Higgins et al. 2017, table 1, 2D shapes: https://openreview.net/forum?id=Sy2fzU9gl
    """
    pixels, tanh_layers = math.prod(image_shape), []
    for inputs in (latent_dim, 1200, 1200):
        tanh_layers += [nn.Linear(inputs, 1200), nn.Tanh()]
    trunk = [nn.Flatten(), *relu_layers(nn.Linear, [pixels, 1200, 1200])]
    logits = nn.Linear(1200, pixels), nn.Unflatten(1, image_shape)
    return Encoder(trunk, 1200, latent_dim), nn.Sequential(*tanh_layers, *logits)


NETWORKS = {"seed": seed, "broadcast": broadcast, "affine": affine, "fc": fc}
