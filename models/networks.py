"""The networks of the VAE for 64x64 images; contract: DECODERS[name](channels, latent_dim)."""

import torch
from torch import Tensor, nn

from models.fast import Conv2d, ConvTranspose2d, Sequential


class Encoder(nn.Module):
    """Image to the parameters of a diagonal Gaussian.

    Conv 32, 32, 32, 64 (4x4, stride 2, padding 1: 64 -> 32 -> 16 -> 8 -> 4), FC 256,
    FC 2 * latent_dim.
    """

    def __init__(self, channels: int, latent_dim: int):
        super().__init__()
        self.trunk = Sequential(
            Conv2d(channels, 32, 4, 2, 1),
            nn.ReLU(inplace=True),
            Conv2d(32, 32, 4, 2, 1),
            nn.ReLU(inplace=True),
            Conv2d(32, 32, 4, 2, 1),
            nn.ReLU(inplace=True),
            Conv2d(32, 64, 4, 2, 1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 256),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(256, 2 * latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, 64, 64) -> mu, logvar, each (B, latent_dim) float32."""
        h = self.trunk(x)  # (B, 256)
        with torch.autocast(x.device.type, enabled=False):  # codes keep full precision
            return self.head(h.float()).chunk(2, dim=1)


class Decoder(Sequential):
    """Code to Bernoulli logits: FC 256, FC 256, upconv 32, 32, 32, C (4x4, stride 2, padding 1).

    The table's second FC gives 256 units, read as 16 maps of 4x4; its last row names the 32 maps
    that go in, the image channels come out: 4 -> 8 -> 16 -> 32 -> 64.
    """

    def __init__(self, channels: int, latent_dim: int):
        super().__init__(
            nn.Linear(latent_dim, 256),
            nn.ReLU(inplace=True),
            nn.Linear(256, 256),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (16, 4, 4)),
            ConvTranspose2d(16, 32, 4, 2, 1),
            nn.ReLU(inplace=True),
            ConvTranspose2d(32, 32, 4, 2, 1),
            nn.ReLU(inplace=True),
            ConvTranspose2d(32, 32, 4, 2, 1),
            nn.ReLU(inplace=True),
            ConvTranspose2d(32, channels, 4, 2, 1),
        )


class SpatialBroadcast(nn.Module):
    """A vector (B, inputs) to every position of a map (B, outputs, side, side), with its place.

    The first layer of a spatial broadcast decoder (Watters et al. 2019): a 1x1 convolution of the
    vector's copies and two channels of coordinates in [-1, 1], row first, taken apart into a
    product of the vector and one of the coordinates, whose sum it is.
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


class BroadcastDecoder(Sequential):
    """Code to Bernoulli logits, told where it draws (Watters et al. 2019).

    Spatial broadcast to 128 maps of 16x16, 1x1 conv 64, 64, 4x4 stride-2 upconv 32, C, ReLU
    between: the generator of InfoGAN's network "broadcast" without its norms. Position is the first
    thing that it learns, in an eighth of the images that the table's decoder takes.
    """

    def __init__(self, channels: int, latent_dim: int):
        # The first activation is not in place: that of a permuted view would turn its gradient's
        # memory format, which takes many times as long.
        super().__init__(
            SpatialBroadcast(latent_dim, 128, 16),
            nn.ReLU(),
            Conv2d(128, 64, 1),
            nn.ReLU(inplace=True),
            Conv2d(64, 64, 1),
            nn.ReLU(inplace=True),
            ConvTranspose2d(64, 32, 4, 2, 1),
            nn.ReLU(inplace=True),
            ConvTranspose2d(32, channels, 4, 2, 1),
        )


DECODERS = {"seed": Decoder, "broadcast": BroadcastDecoder}
