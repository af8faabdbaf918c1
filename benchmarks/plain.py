"""The yardstick: the training loop that anyone would write, for the networks of this project.

float32, torch's default layers and settings, a DataLoader with worker processes, one backward for
each player. Nothing here is used by the project. A module, no script: benchmarks/train_speed.py
times it.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from data import ImageData
from models import InfoGAN
from models.fast import Conv2d, ConvTranspose2d, Sequential
from models.vae import VAE, gaussian_kl

WORKERS = 2 if (os.cpu_count() or 1) < 8 else 8


class Images(Dataset):
    """One image an item, float32 in [0, 1]."""

    def __init__(self, data: ImageData):
        self.pixels = data.images[:50_000]  # uint8; the whole set unpacked would be 3 GB

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Tensor:
        return self.pixels[i].float()


def plain_batches(data: ImageData, batch_size: int) -> Iterator[Tensor]:
    """Shuffled batches without end."""
    loader = DataLoader(
        Images(data),
        batch_size,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        persistent_workers=True,
    )
    while True:
        yield from loader


def plain_layers(model: nn.Module) -> nn.Module:
    """The same networks with torch's own layers, spectrally normalised ones too."""
    for module in model.modules():
        for ours in (Conv2d, ConvTranspose2d, Sequential):
            if isinstance(module, ours):
                module.forward = functools.partial(ours.__base__.forward, module)
    return model


def plain_vae(vae: VAE) -> Callable[[Tensor], None]:
    """A training step of beta = 4 on x (B, C, H, W)."""
    plain_layers(vae)
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-4)

    def step(x: Tensor) -> None:
        mu, logvar = vae.encoder(x)
        logits = vae.decoder(mu + torch.randn_like(mu) * (0.5 * logvar).exp())
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        kl = gaussian_kl(mu, logvar).sum(1).mean()
        optimizer.zero_grad()
        (recon + 4 * kl).backward()
        optimizer.step()

    return step


def plain_infogan(gan: InfoGAN) -> Callable[[Tensor], None]:
    """A training step on x (B, C, H, W): D (and what it shares with Q), then G as often as it says.

    The codes are continuous and Q's variance is fixed, as in the published configurations; R1 is
    taken as often as ours.
    """
    plain_layers(gan)
    g, d = gan.generator, gan.discriminator
    optimizer_g = torch.optim.Adam([*g.parameters(), *d.q_head.parameters()], lr=1e-3)
    optimizer_d = torch.optim.Adam([*d.trunk.parameters(), *d.d_head.parameters()], lr=2e-4)
    bce = F.binary_cross_entropy_with_logits
    steps = itertools.count()

    def step(x: Tensor) -> None:
        penalise = gan.r1 > 0 and next(steps) % gan.r1_every == 0
        real = (gan.low + (1 - gan.low) * x).requires_grad_(penalise)
        z = torch.cat([gan.sample(len(x)), gan.sample_noise(len(x))], 1)
        codes = z[:, : gan.continuous]
        fake = g(z)
        optimizer_d.zero_grad()
        real_logits, _ = d(noisy(real))
        fake_logits, q = d(noisy(fake.detach()))
        loss = bce(real_logits, torch.ones_like(real_logits))
        loss = loss + bce(fake_logits, torch.zeros_like(fake_logits))
        if penalise:
            (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            loss = loss + 0.5 * gan.r1 * gan.r1_every * slope.square().sum((1, 2, 3)).mean()
        (loss + gan.info_weight * 0.5 * (q - codes).square().sum(1).mean()).backward()
        optimizer_d.step()
        for repeat in range(gan.g_steps):
            if repeat:
                fake = g(z)
            optimizer_g.zero_grad()
            logits, q = d(noisy(fake))
            loss = bce(logits, torch.ones_like(logits))
            (loss + gan.info_weight * 0.5 * (q - codes).square().sum(1).mean()).backward()
            optimizer_g.step()

    def noisy(images: Tensor) -> Tensor:
        if gan.instance_noise == 0:
            return images
        return images + gan.instance_noise * torch.randn_like(images)

    return step


def plain_encoding(
    data: ImageData, device: torch.device, batch_size: int = 128
) -> Callable[[nn.Module], Tensor]:
    """A function that encodes all images, in order; its loader is made before anything is timed."""
    loader = DataLoader(Images(data), batch_size, num_workers=WORKERS, persistent_workers=True)

    @torch.no_grad()
    def encode(model: nn.Module) -> Tensor:
        return torch.cat([model.encoder(x.to(device))[0] for x in loader])

    return encode
