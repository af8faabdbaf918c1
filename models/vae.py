"""The VAE: encoder, decoder and training step; its loss is an objective."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.categories import (
    TEMPERATURE,
    assign,
    capacity_penalty,
    category_capacity,
    category_information,
    category_kl,
)
from models.graphs import scheduled
from models.hyperparameters import Count, CountOrZero, NonNegative, Positive, Share, decay_rates
from models.likelihoods import LIKELIHOODS, nll
from models.muon import Muon, is_hidden
from models.networks import NETWORKS, Shape, linear_layers

Terms = dict[str, Tensor]  # 0-d tensors
Loss = tuple[Tensor, Terms]
OPTIMIZERS = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
COLLAPSED_KL = 0.05  # nats; below it, the codes say nothing about the images
COLLAPSE_AFTER = 2000  # steps; before it, the KL of a healthy training can be as low


class Posterior(NamedTuple):
    """A sample z of q(z | x) and its parameters, each (B, D) float32."""

    z: Tensor
    mu: Tensor
    logvar: Tensor
    category: Tensor | None = None  # q(c | x), (B, categories), if there are categories


class VAE(nn.Module):
    """A Gaussian posterior and a decoder: https://arxiv.org/abs/1312.6114.

    Args:
        network: encoder and decoder; affine has the pose of a sprite built in.
        latent_dim: number of latents.
        likelihood: of a pixel given the code; decode draws its mean, see models/likelihoods.py.
        optimizer: of encoder and decoder; adagrad is that of Higgins et al. 2017.
        lr: learning rate of the optimizer.
        muon_from: first step at which Muon trains the hidden layers in place of the optimizer.
        lr_muon: learning rate of Muon.
        lr_decay: factor of all learning rates after a log-linear decay; 1 is no decay.
        lr_decay_steps: steps of the decay.
        draw_from: first step that trains the sprite of network affine; before, only its pose is.
        rotate_at: steps before which FastICA turns the active latents to independent axes.
        categories: number of values of a categorical latent beside the others; 0 is none.
        category_inference: assign trains the category of least loss, gumbel a Gumbel softmax.
        category_from: first step that trains the category.
        crowding: nats that each image in a category costs the next one, with assign.
        category_steps: steps over which the capacity of the category rises, with gumbel.
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
        likelihood: Literal[tuple(LIKELIHOODS)] = "bernoulli",
        optimizer: Literal[tuple(OPTIMIZERS)] = "adam",
        lr: Positive = 5e-4,
        muon_from: CountOrZero | None = None,
        lr_muon: Positive = 0.01,
        lr_decay: Share = 1.0,
        lr_decay_steps: Count = 1,
        draw_from: CountOrZero = 0,
        rotate_at: list[CountOrZero] | None = None,
        categories: CountOrZero = 0,
        category_inference: Literal["assign", "gumbel"] = "assign",
        category_from: CountOrZero = 0,
        crowding: NonNegative = 0.001,  # CascadeVAE's code
        category_steps: Count = 5000,
    ):
        super().__init__()
        if draw_from and network != "affine":
            raise ValueError(f"model.draw_from: {draw_from}; allowed with network {network}: 0")
        self.latent_dim, self.objective, self.likelihood = latent_dim, objective, likelihood
        self.encoder, self.decoder = NETWORKS[network](image_shape, latent_dim)
        self.categories, self.is_assigned = categories, category_inference == "assign"
        self.category_from, self.category_steps = category_from, category_steps
        self.crowding = crowding
        self.category_sizes = {latent_dim: categories} if categories else {}
        if categories:
            encoder, self.decoder = NETWORKS[network](image_shape, latent_dim + categories)
            self.encoder = self.encoder if self.is_assigned else encoder
            with torch.no_grad():  # untrained categories draw the same
                linear_layers(self.decoder)[0].weight[:, -categories:] = 0
        self.dtype = torch.float32  # of the convolutions; bfloat16 where the hardware has it
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizers = {"vae": OPTIMIZERS[optimizer](parameters, lr=lr, fused=True)}
        if muon_from is not None:
            hidden = [weight for weight in parameters if is_hidden(weight)]
            self.optimizers = {"muon": Muon(hidden, lr_muon)} | self.optimizers
        self.optimizers |= getattr(objective, "optimizers", {})
        self.lr_decay, self.lr_decay_steps = lr_decay, lr_decay_steps
        self.muon_from, self.draw_from, self.step = muon_from, draw_from, 0

    def autocast(self, x: Tensor) -> torch.autocast:
        """The context in which the convolutions run in `self.dtype`."""
        return torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def forward(self, x: Tensor) -> tuple[Tensor, Posterior]:
        """Logits (B, C, H, W) of a sample from the posterior."""
        with self.autocast(x):
            mu, logvar, scores = self._encoded(x)
            z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
            if not self.categories:
                return self.decoder(z), Posterior(z, mu, logvar)
            q, c = self._draw_category(x, z, scores)
            return self.decoder(torch.cat([z, c], 1)), Posterior(z, mu, logvar, q)

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu and logvar (B, D), and with gumbel the logits of the categories (B, categories)."""
        (mu, logvar), d = self.encoder(x), self.latent_dim
        return mu[:, :d], logvar[:, :d], mu[:, d:]

    def _draw_category(self, x: Tensor, z: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """q(c | x) and what the decoder takes of the category, each (B, categories)."""
        if self.step < self.category_from:
            prior = torch.full((len(z), self.categories), 1 / self.categories, device=z.device)
            return prior, torch.zeros_like(prior)
        if self.is_assigned:
            one_hot = assign(category_nll(self, x, z), self.crowding)
            return one_hot, one_hot
        return logits.softmax(1), F.gumbel_softmax(logits, TEMPERATURE)

    def train_step(self, x: Tensor, step: int) -> Terms:
        """One step of every optimiser; returns the loss and the objective's terms."""
        self.step = step
        decay_rates(self.optimizers, self.lr_decay, step, self.lr_decay_steps)
        if self.draw_from:
            self.decoder.draw.requires_grad_(step >= self.draw_from)
        loss, terms = self.objective(self, x, step)
        if self.categories and not self.is_assigned:
            settings = self.categories, self.category_from, self.category_steps
            schedule = partial(category_capacity, *settings)
            capacity = scheduled("category_capacity", schedule, step, like=loss)
            loss = loss + capacity_penalty(terms["kl_category"], capacity)
        loss.backward()
        for name, optimizer in self.optimizers.items():
            if name != "muon" or step >= self.muon_from:
                optimizer.step()
                optimizer.zero_grad()  # the next one passes over the weights that Muon has changed
        return {name: term.detach() for name, term in ({"loss": loss} | terms).items()}

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu (B, D) with the most likely category as column D if there is one; logvar (B, D)."""
        with self.autocast(x):
            mu, logvar, scores = self._encoded(x)
            if not self.categories:
                return mu, logvar
            if self.is_assigned:
                scores = -category_nll(self, x, mu)
            return torch.cat([mu, scores.argmax(1, keepdim=True).to(mu)], 1), logvar

    def decode(self, z: Tensor) -> Tensor:
        with self.autocast(z):
            return LIKELIHOODS[self.likelihood].mean(self.decoder(self._inputs(z)).float())

    def _inputs(self, z: Tensor) -> Tensor:
        """Codes (B, D), with a category (B, D + 1) -> inputs of the decoder."""
        if not self.categories:
            return z
        return torch.cat([z[:, :-1], F.one_hot(z[:, -1].long(), self.categories).to(z)], 1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        options = {"generator": generator, "device": generator.device}
        z = torch.randn(n, self.latent_dim, **options)
        if not self.categories:
            return z
        return torch.cat([z, torch.randint(self.categories, (n, 1), **options)], 1)

    def information(self, x: Tensor) -> Tensor:
        """The mean KL of each latent, and the information of the category: (D or D + 1,), nats."""
        mu, logvar = self.posterior(x)
        kl = gaussian_kl(mu[:, : self.latent_dim], logvar).mean(0)
        if not self.categories:
            return kl
        one_hot = self._inputs(mu)[:, self.latent_dim :]
        return torch.cat([kl, category_information(one_hot)[None]])

    def warnings(self, terms: dict[str, float]) -> list[str]:
        if self.step < COLLAPSE_AFTER or terms["kl"] >= COLLAPSED_KL:
            return []
        return [f"posterior collapse: the codes carry only {terms['kl']:.4f} nats about an image"]


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) of each image and latent: (B, D), nats."""
    return 0.5 * (mu.square() + logvar.exp() - 1.0 - logvar)


@torch.no_grad()
def category_nll(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """-log p(x | z, c) of each image and category, nats: (B, categories)."""
    x, columns = x.float().flatten(1), []
    for one_hot in torch.eye(vae.categories, device=z.device):
        logits = vae.decoder(torch.cat([z, one_hot.expand(len(z), -1)], 1)).float().flatten(1)
        columns.append(LIKELIHOODS[vae.likelihood].pixel_nll(logits, x).sum(1))
    return torch.stack(columns, 1)


def elbo_terms(vae: VAE, x: Tensor) -> tuple[Terms, Posterior]:
    """recon, kl, elbo and kl_0 ... (of each latent), and the posterior of a batch."""
    logits, posterior = vae(x)
    recon = nll(vae.likelihood, logits, x) / len(x)
    kl = gaussian_kl(posterior.mu, posterior.logvar).mean(0)  # (D,)
    total = kl.sum()
    terms = {"recon": recon, "kl": total, "elbo": -recon - total}
    terms |= {f"kl_{i}": value for i, value in enumerate(kl.detach().unbind())}
    if posterior.category is not None:
        terms["kl_category"] = category_kl(posterior.category)
        terms["mi_category"] = category_information(posterior.category)
        terms["elbo"] = terms["elbo"] - terms["kl_category"]
    return terms, posterior
