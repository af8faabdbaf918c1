"""The networks of the VAE for 64x64 images; contract: DECODERS[name](channels, latent_dim)."""

import torch
import torch.nn.functional as F
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
    product of the vector and one of the coordinates, whose sum it is. Each starts with weights of
    its own number of inputs, so those of the coordinates are larger than in one convolution.
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


class AffineDecoder(nn.Module):
    """Code to Bernoulli logits: a sprite of 32x32, put into the image by an affine map.

    The first latents are the map's: x, y, size, angle and stretch (a spatial transformer, Jaderberg
    et al. 2015; so translation and rotation need not be learnt, as in spatial-VAE, Bepler et al.
    2019, and VITAE, Detlefsen & Hauberg 2019). The stretch and all that follow draw: to a blob with
    the symmetry of a square comes the output of FC 256, FC 512, upconv 32, 32, C (4x4, stride 2,
    padding 1: 4 -> 8 -> 16 -> 32), 0 at first. What changes its sign under a quarter turn about the
    sprite's centre is taken out, or one ellipse could be a sprite long in x as well as a quarter
    turn of one long in y, and its angle would not tell its orientation.
    """

    pose = ("x", "y", "size", "angle", "stretch")

    def __init__(self, channels: int, latent_dim: int):
        super().__init__()
        if latent_dim < len(self.pose):
            raise ValueError(
                f"model.latent_dim: {latent_dim} is not allowed with network affine; "
                f"allowed: {len(self.pose)} or more"
            )
        last = ConvTranspose2d(32, channels, 4, 2, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.draw = Sequential(
            nn.Linear(latent_dim - len(self.pose) + 1, 256),
            nn.ReLU(inplace=True),
            nn.Linear(256, 512),
            nn.ReLU(inplace=True),
            nn.Unflatten(1, (32, 4, 4)),
            ConvTranspose2d(32, 32, 4, 2, 1),
            nn.ReLU(inplace=True),
            ConvTranspose2d(32, 32, 4, 2, 1),
            nn.ReLU(inplace=True),
            last,
        )
        # Logits of a disc with soft edges, a quarter of the sprite, on a background of .2 %.
        square = torch.linspace(-1, 1, 32).square()
        blob = 8 * torch.exp(-(square[:, None] + square) / 0.32)
        self.blob = nn.Parameter(blob.repeat(channels, 1, 1))
        self.background = nn.Parameter(torch.full((channels, 1, 1), -6.0))

    def forward(self, z: Tensor) -> Tensor:
        sprite = self.sprite(z)
        with torch.autocast(z.device.type, enabled=False):  # places need single precision
            grid = F.affine_grid(self.place(z), (len(z), 1, 64, 64), align_corners=False)
            return self.background + F.grid_sample(sprite, grid, align_corners=False)

    def sprite(self, z: Tensor) -> Tensor:
        """z (B, D) -> what the affine map moves: logits over the background's, (B, C, 32, 32)."""
        blob = sum(self.blob.rot90(turns, (1, 2)) for turns in range(4)) / 4
        sprite = blob + self.draw(z[:, len(self.pose) - 1 :]).float()
        turned = [sprite.rot90(turns, (2, 3)) for turns in range(4)]
        return sprite - (turned[0] - turned[1] + turned[2] - turned[3]) / 4

    def place(self, z: Tensor) -> Tensor:
        """z (B, D) -> the affine map from image to sprite, both in [-1, 1]: (B, 2, 3).

        x to the right and y downwards: .3 a unit, so that N(0, 1) has the sprite inside the image.
        Angle: half a radian a unit, clockwise; noise of a whole unit still leaves a direction for
        gradients to come from. Size: the sprite is e^(tanh(size / 2) / 2) times half as long as the
        image. Without a bound it would shrink to a few pixels before it knows where to be. Stretch:
        times e^s along the turned x axis and e^-s across, s from 0 to .7 and .35 at 0, so that
        there is an axis from the first step on.
        """
        x, y, size, angle, stretch = z[:, : len(self.pose)].float().unbind(1)
        shift = 0.3 * torch.stack([x, y], 1)[:, :, None]
        angle, stretch = 0.5 * angle, 0.7 * torch.sigmoid(2 * stretch)
        zoom = 2 * torch.exp(-0.5 * torch.tanh(0.5 * size))
        along = torch.stack([angle.cos(), angle.sin()], 1) * (zoom * torch.exp(-stretch))[:, None]
        across = torch.stack([-angle.sin(), angle.cos()], 1) * (zoom * torch.exp(stretch))[:, None]
        linear = torch.stack([along, across], 1)
        return torch.cat([linear, -linear @ shift], 2)


DECODERS = {"seed": Decoder, "broadcast": BroadcastDecoder, "affine": AffineDecoder}
