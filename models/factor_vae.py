"""FactorVAE: a penalty on the total correlation, which a discriminator estimates."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.graphs import scheduled
from models.hyperparameters import Count, NonNegative, Positive, log_linear
from models.vae import VAE, Loss, elbo_terms

MAX_LOGIT = 60.0  # nats; e^60 is far from the limit of float32


class FactorVAE(nn.Module):
    """recon + beta_t KL + gamma TC: Kim & Mnih 2018, eq. 2, https://arxiv.org/abs/1802.05983.

    TC is the mean logit of a discriminator between codes and codes whose latents were permuted over
    the batch. Both players use the same batch, as in https://arxiv.org/abs/1811.12359.

    Args:
        gamma: weight of the total correlation.
        lr_d: learning rate of the discriminator's Adam.
        beta_start: weight of the KL at step 0.
        beta: weight of the KL from anneal_steps on; the paper's is 1 throughout.
        anneal_steps: steps over which the weight of the KL changes log-linearly.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        gamma: NonNegative = 35.0,
        lr_d: Positive = 1e-4,
        beta_start: Positive = 1.0,  # far below 1, every factor finds latents before the KL acts
        beta: Positive = 1.0,
        anneal_steps: Count = 10_000,
    ):
        super().__init__()
        self.gamma = gamma
        self.beta_start, self.beta, self.anneal_steps = beta_start, beta, anneal_steps
        layers: list[nn.Module] = []
        for inputs in [latent_dim] + 5 * [1000]:
            layers += [nn.Linear(inputs, 1000), nn.LeakyReLU(0.2, inplace=True)]
        self.discriminator = nn.Sequential(*layers, nn.Linear(1000, 1))
        parameters = self.discriminator.parameters()
        self.optimizers = {"d": torch.optim.Adam(parameters, lr_d, betas=(0.5, 0.9), fused=True)}

    def forward(self, vae: VAE, x: Tensor, step: int) -> Loss:
        """The sum of both players' losses, whose gradients reach disjoint parameters."""
        terms, q = elbo_terms(vae, x)
        z = q.z.view_as(q.z)  # the hook below changes the gradient of the discriminator alone
        with vae.autocast(x):
            logits = self.discriminator(torch.cat([z, permute_latents(z.detach())])).float()
        real, fake = logits.chunk(2)
        d_loss = 0.5 * (F.softplus(-real) + F.softplus(fake)).mean()
        tc = real.detach().mean()

        # One backward pass serves both players, which saves 9 % of a step. In the logit of a code,
        # d_loss has the gradient -sigmoid(-real) / 2B, and gamma TC has gamma / B. A logit depends
        # on its own row of z alone, so the hook multiplies the row's gradient by their ratio.
        ratio = -2 * self.gamma * (1 + real.detach().clamp(max=MAX_LOGIT).exp())  # (B, 1)
        z.register_hook(lambda grad: ratio * grad)

        schedule = partial(log_linear, self.beta_start, self.beta, steps=self.anneal_steps)
        beta = scheduled("beta", schedule, step, like=tc)
        loss = terms["recon"] + beta * terms["kl"] + self.gamma * tc
        accuracy = {"d_real": (real > 0).float().mean(), "d_fake": (fake < 0).float().mean()}
        changes = {"beta": beta} if self.beta_start != self.beta else {}
        terms = {"loss": loss} | terms | {"tc": tc, "d_loss": d_loss} | accuracy | changes
        return loss + d_loss, terms


def permute_latents(z: Tensor) -> Tensor:
    """z (B, D) with each column permuted: samples of the product of the marginals."""
    return z.gather(0, torch.rand_like(z).argsort(0))
