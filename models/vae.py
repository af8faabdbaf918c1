"""The VAE: encoder, decoder and the training step; what it minimises is an objective."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from models.checks import AtLeastOne, NonNegativeInt, PositiveFloat, PositiveFraction
from models.networks import DECODERS, Encoder
from models.schedules import log_linear, need_decay_steps, set_rates


class VAE(nn.Module):
    """Variational auto-encoder with a Gaussian posterior and a Bernoulli decoder.

    Kingma & Welling 2014. `objective(vae, x, step) -> (loss, terms)` is one of OBJECTIVES. network:
    the decoder, one of DECODERS; the encoder is the same. All learning rates fall log-linearly to
    lr_decay of themselves over lr_decay_steps. draw_from: the step from which on
    network affine learns to draw; up to there, where its sprite is, how large and which way round.
    """

    span = (-3.0, 3.0)  # of a traversal, in standard deviations of the prior
    trained_span = None  # a Gaussian prior has no edge
    information_name = "KL"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        objective: Callable[["VAE", Tensor, int], tuple[Tensor, dict[str, Tensor]]],
        *,
        network: Literal["seed", "broadcast", "affine"] = "seed",
        latent_dim: AtLeastOne = 10,
        lr: PositiveFloat = 5e-4,
        lr_decay: PositiveFraction = 1.0,
        lr_decay_steps: AtLeastOne = 1,
        draw_from: NonNegativeInt = 0,
    ):
        super().__init__()
        if image_shape[1:] != (64, 64):
            raise ValueError(f"the networks take images of 64x64 pixels, not {image_shape[1:]}")
        if draw_from and network != "affine":
            raise ValueError(
                f"model.draw_from: {draw_from} is not allowed with network {network}; allowed: 0"
            )
        need_decay_steps(lr_decay, lr_decay_steps)
        self.latent_dim = latent_dim
        self.objective = objective
        self.encoder = Encoder(image_shape[0], latent_dim)
        self.decoder = DECODERS[network](image_shape[0], latent_dim)
        self.dtype = torch.float32  # of the convolutions: bfloat16 where the hardware has it
        own = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizers = {"vae": torch.optim.Adam(own, lr=lr, fused=True)}
        self.optimizers |= getattr(objective, "optimizers", {})
        self.rates = {name: o.param_groups[0]["lr"] for name, o in self.optimizers.items()}
        self.lr_decay, self.lr_decay_steps = lr_decay, lr_decay_steps
        self.draw_from = draw_from

    def autocast(self, x: Tensor) -> torch.autocast:
        """The context in which the convolutions run in `self.dtype`."""
        return torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, C, H, W) in [0, 1] -> logits (B, C, H, W), z, mu, logvar (each (B, D) float32)."""
        with self.autocast(x):
            mu, logvar = self.encoder(x)
            z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
            return self.decoder(z), z, mu, logvar

    def train_step(self, x: Tensor, step: int) -> dict[str, Tensor]:
        """One optimiser step on x (B, C, H, W) in [0, 1] -> the objective's terms, detached."""
        decay = log_linear(1.0, self.lr_decay, step, self.lr_decay_steps)
        set_rates(self.optimizers, self.rates, decay)
        if self.draw_from:
            self.decoder.draw.requires_grad_(step >= self.draw_from)
        loss, terms = self.objective(self, x, step)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return {name: term.detach() for name, term in ({"loss": loss} | terms).items()}

    def encode(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [0, 1] -> posterior means (B, D), float32."""
        return self.posterior(x)[0]

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) in [0, 1] -> mu, logvar, each (B, D), float32."""
        with self.autocast(x):
            return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, D) -> pixel means (B, C, H, W) in [0, 1], float32."""
        with self.autocast(z):
            return torch.sigmoid(self.decoder(z).float())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of the prior N(0, 1): (n, D) on the generator's device."""
        return torch.randn(n, self.latent_dim, generator=generator, device=generator.device)

    def information(self, x: Tensor) -> Tensor:
        """Nats that each latent carries about x (B, C, H, W): mean KL to the prior, (D,)."""
        return gaussian_kl(*self.posterior(x)).mean(0)


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of every image and latent: (B, D), nats."""
    return 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar)
