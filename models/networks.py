"""The seed's convolutional encoder and decoder for 64x64 images."""

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
