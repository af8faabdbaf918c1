"""The VAE: encoder, decoder and training step; its loss is an objective."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.hyperparameters import Count, CountOrZero, Positive, Share, decay_rates
from models.muon import Muon, is_hidden
from models.networks import NETWORKS, Shape

Terms = dict[str, Tensor]  # 0-d tensors
Loss = tuple[Tensor, Terms]
COLLAPSED_KL = 0.05  # nats; below it, the codes say nothing about the images
COLLAPSE_AFTER = 2000  # steps; before it, the KL of a healthy training can be as low


class Posterior(NamedTuple):
    """A sample z of q(z | x) and its parameters, each (B, D) float32."""

    z: Tensor
    mu: Tensor
    logvar: Tensor


class VAE(nn.Module):
    """A Gaussian posterior and a Bernoulli decoder: https://arxiv.org/abs/1312.6114.

    Args:
        network: encoder and decoder; affine has the pose of a sprite built in.
        latent_dim: number of latents.
        lr: learning rate of Adam.
        muon_from: first step at which Muon trains the hidden layers in place of Adam.
        lr_muon: learning rate of Muon.
        lr_decay: factor of all learning rates after a log-linear decay; 1 is no decay.
        lr_decay_steps: steps of the decay.
        draw_from: first step that trains the sprite of network affine; before, only its pose is.
        rotate_at: steps before which FastICA turns the active latents to independent axes.
    """

    span = (-3.0, 3.0)  # of a traversal, in standard deviations of the prior
    information_name = "KL"

    def __init__(
        self,
        image_shape: Shape,
        objective: Callable[["VAE", Tensor, int], Loss],
        *,
        network: Literal[tuple(NETWORKS)] = "seed",
        latent_dim: Count = 10,
        lr: Positive = 5e-4,
        muon_from: CountOrZero | None = None,
        lr_muon: Positive = 0.01,
        lr_decay: Share = 1.0,
        lr_decay_steps: Count = 1,
        draw_from: CountOrZero = 0,
        rotate_at: list[CountOrZero] | None = None,
    ):
        super().__init__()
        if draw_from and network != "affine":
            raise ValueError(
                f"model.draw_from: {draw_from} is not allowed with network {network}; allowed: 0"
            )
        self.latent_dim, self.objective = latent_dim, objective
        self.encoder, self.decoder = NETWORKS[network](image_shape, latent_dim)
        self.dtype = torch.float32  # of the convolutions; bfloat16 where the hardware has it
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizers = {"vae": torch.optim.Adam(parameters, lr=lr, fused=True)}
        if muon_from is not None:
            hidden = [weight for weight in parameters if is_hidden(weight)]
            self.optimizers = {"muon": Muon(hidden, lr_muon)} | self.optimizers
        self.optimizers |= getattr(objective, "optimizers", {})
        self.lr_decay, self.lr_decay_steps = lr_decay, lr_decay_steps
        self.muon_from, self.draw_from, self.rotate_at, self.step = (
            muon_from,
            draw_from,
            rotate_at,
            0,
        )

    def autocast(self, x: Tensor) -> torch.autocast:
        """The context in which the convolutions run in `self.dtype`."""
        return torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def forward(self, x: Tensor) -> tuple[Tensor, Posterior]:
        """Logits (B, C, H, W) of a sample from the posterior."""
        with self.autocast(x):
            mu, logvar = self.encoder(x)
            z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
            return self.decoder(z), Posterior(z, mu, logvar)

    def train_step(self, x: Tensor, step: int) -> Terms:
        """One step of every optimiser; returns the loss and the objective's terms."""
        self.step = step
        decay_rates(self.optimizers, self.lr_decay, step, self.lr_decay_steps)
        if self.draw_from:
            self.decoder.draw.requires_grad_(step >= self.draw_from)
        loss, terms = self.objective(self, x, step)
        loss.backward()
        for name, optimizer in self.optimizers.items():
            if name != "muon" or step >= self.muon_from:
                optimizer.step()
                optimizer.zero_grad()  # Adam passes over the weights that Muon has changed
        return {name: term.detach() for name, term in ({"loss": loss} | terms).items()}

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast(x):
            return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        with self.autocast(z):
            return torch.sigmoid(self.decoder(z).float())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.latent_dim, generator=generator, device=generator.device)

    def information(self, x: Tensor) -> Tensor:
        """The mean KL of each latent, nats: (D,)."""
        return gaussian_kl(*self.posterior(x)).mean(0)

    def warnings(self, terms: dict[str, float]) -> list[str]:
        if self.step < COLLAPSE_AFTER or terms["kl"] >= COLLAPSED_KL:
            return []
        return [f"posterior collapse: the codes carry only {terms['kl']:.4f} nats about an image"]


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of each image and latent: (B, D), nats."""
    return 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar)


class _BernoulliNLL(torch.autograd.Function):
    """bernoulli_nll; the forward pass computes the gradient too."""

    @staticmethod
    def forward(ctx, logits, x):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        wide, x = logits.to(dtype), x.to(dtype)
        p = torch.sigmoid(wide)
        if logits.requires_grad:  # rounded after the difference: 1 - p is small where x is 1
            ctx.save_for_backward((p - x).to(logits.dtype))
        # log(1 + e^l) - x l = max(l, 0) - log max(p, 1 - p) - x l, stable for every l
        log_larger = p.sub_(0.5).abs_().add_(0.5).log_()
        return wide.clamp(min=0).sub_(log_larger).sum() - torch.dot(wide.reshape(-1), x.reshape(-1))

    @staticmethod
    def backward(ctx, grad):
        (residual,) = ctx.saved_tensors
        return residual * grad.to(residual.dtype), None


def bernoulli_nll(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x | logits) of a batch in nats: a faster binary_cross_entropy_with_logits."""
    return _BernoulliNLL.apply(logits, x)


def elbo_terms(vae: VAE, x: Tensor) -> tuple[Terms, Posterior]:
    """recon, kl, elbo and kl_0 ... (of each latent), and the posterior of a batch."""
    logits, posterior = vae(x)
    recon = bernoulli_nll(logits, x) / len(x)
    kl = gaussian_kl(posterior.mu, posterior.logvar).mean(0)  # (D,)
    total = kl.sum()
    per_latent = {f"kl_{i}": value for i, value in enumerate(kl.detach().unbind())}
    return {"recon": recon, "kl": total, "elbo": -recon - total} | per_latent, posterior
