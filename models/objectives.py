"""What a VAE minimises: objective(vae, x, step, **hyperparameters) -> (loss, terms).

x is (B, C, H, W) in [0, 1]; loss and terms are 0-d tensors in nats per image: summed over pixels
and latents, averaged over the batch, so that beta and gamma mean what the papers mean. Terms are
the same ones at every step: they are the columns of the log. The keyword arguments are the keys of
the YAML section `objective`, with their types, ranges and defaults.

An objective with a state of its own (a discriminator, a controller) is an nn.Module: its keyword
arguments are the keys, its `optimizers`, if any, step with the VAE's, and it is saved and resumed
with the model. Positional arguments named latent_dim or dataset_size are filled in by build_model.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checks import AtLeastOne, NonNegativeFloat, PositiveFloat
from models.fast import bernoulli_nll
from models.schedules import linear, log_linear
from models.vae import VAE, gaussian_kl

MAX_LOGIT = 60.0  # nats; e^60 is still far from float32's limit


class Posterior(NamedTuple):
    """A sample z of q(z | x) and its parameters, each (B, D)."""

    z: Tensor
    mu: Tensor
    logvar: Tensor


def elbo_terms(vae: VAE, x: Tensor) -> tuple[dict[str, Tensor], Posterior]:
    """recon, kl, elbo and the KL of every latent (kl_0 ...) of one batch, nats per image."""
    logits, *posterior = vae(x)
    posterior = Posterior(*posterior)
    recon = bernoulli_nll(logits, x) / len(x)
    kl = gaussian_kl(posterior.mu, posterior.logvar).mean(0)  # (D,)
    total = kl.sum()
    per_latent = {f"kl_{i}": value for i, value in enumerate(kl.detach().unbind())}
    return {"recon": recon, "kl": total, "elbo": -recon - total} | per_latent, posterior


def beta_vae(
    vae: VAE, x: Tensor, step: int, *, beta: NonNegativeFloat = 4.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """recon + beta KL: Higgins et al. 2017, equation 4; beta = 1 is the VAE."""
    terms, _ = elbo_terms(vae, x)
    return terms["recon"] + beta * terms["kl"], terms


def vae_elbo(vae: VAE, x: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The negative evidence lower bound: Kingma & Welling 2014, equation 10."""
    return beta_vae(vae, x, step, beta=1.0)


def annealed_beta_vae(
    vae: VAE,
    x: Tensor,
    step: int,
    *,
    beta_start: PositiveFloat = 100.0,
    beta: PositiveFloat = 4.0,
    anneal_steps: AtLeastOne = 10_000,
) -> tuple[Tensor, dict[str, Tensor]]:
    """recon + beta_t KL, beta_t log-linear from beta_start to beta over anneal_steps, then beta.

    A tight start lets the few factors that save most pixels (position, scale) claim a latent each
    before the others come in.
    """
    beta_t = log_linear(beta_start, beta, step, anneal_steps)
    loss, terms = beta_vae(vae, x, step, beta=beta_t)
    return loss, terms | {"beta": loss.new_full((), beta_t)}


def capacity_vae(
    vae: VAE,
    x: Tensor,
    step: int,
    *,
    gamma: PositiveFloat = 100.0,
    c_max: NonNegativeFloat = 25.0,
    c_steps: AtLeastOne = 10_000,
) -> tuple[Tensor, dict[str, Tensor]]:
    """recon + gamma |KL - C|, C from 0 to c_max nats over c_steps: Burgess et al. 2018, eq. 8."""
    terms, _ = elbo_terms(vae, x)
    capacity = linear(0.0, c_max, step, c_steps)
    loss = terms["recon"] + gamma * (terms["kl"] - capacity).abs()
    return loss, terms | {"capacity": loss.new_full((), capacity)}


class _Controller(nn.Module):
    """What moves the weight of the KL towards a target: C, over all processes of a run.

    over_processes: the mean of a value over them, which training.synchronise puts here.
    """

    over_processes: Callable[[Tensor], Tensor] = staticmethod(lambda value: value)

    def towards(
        self, vae: VAE, x: Tensor, beta: Tensor, capacity: float
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss at a weight, the terms, and KL - C."""
        loss, terms = beta_vae(vae, x, 0, beta=beta)
        error = self.over_processes(terms["kl"].detach()) - capacity
        return loss, terms | {"beta": beta, "capacity": loss.new_full((), capacity)}, error


class ControlledVAE(_Controller):
    """recon + beta_t KL, beta_t moved so that the KL follows a target: no beta, gamma to choose.

    The target C rises linearly from 0 to c_max nats over c_steps. The idea of ControlVAE (below)
    with the integral taken in log beta: log beta += k_i (KL - C) at every step, within [beta_min,
    beta_start] and from beta_start, so that a weight of 100 and one of 1 are corrected at the same
    relative pace and the start is tight. k_i: per nat and step.

    Recipe for c_max: the KL of a run with the beta that one would settle for (beta = 4 on 2D
    shapes: 8 to 12 nats); above it the extra nats go into latents that are already live.
    """

    def __init__(
        self,
        *,
        c_max: PositiveFloat = 12.0,
        c_steps: AtLeastOne = 10_000,
        k_i: PositiveFloat = 0.01,
        beta_start: PositiveFloat = 100.0,
        beta_min: PositiveFloat = 1.0,
    ):
        super().__init__()
        if beta_min > beta_start:
            raise ValueError(
                f"objective.beta_min: {beta_min} is not allowed; "
                f"allowed: at most beta_start, {beta_start}"
            )
        self.c_max, self.c_steps, self.k_i = c_max, c_steps, k_i
        self.log_range = math.log(beta_min), math.log(beta_start)
        self.register_buffer("log_beta", torch.tensor(math.log(beta_start)))

    def forward(self, vae: VAE, x: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss at the present weight; the weight of the next step follows from its KL."""
        beta, capacity = self.log_beta.exp(), linear(0.0, self.c_max, step, self.c_steps)
        loss, terms, error = self.towards(vae, x, beta, capacity)
        self.log_beta.add_(self.k_i * error).clamp_(*self.log_range)
        return loss, terms


class ControlVAE(_Controller):
    """recon + beta_t KL, beta_t from a proportional-integral controller: Shao et al. 2020, alg. 1.

    With e = C - KL: beta_t = beta_min + k_p / (1 + exp(e)) + I_t, at least beta_min, where I_t =
    I_{t-1} - k_i e unless the weight before was below beta_min (no wind-up). The weight starts at
    beta_min and has no upper end. C rises linearly from 0 to c_max nats over c_steps. From memory:
    the paper's C rises by .15 nats every 5,000 steps from .5 on, and k_p, k_i and beta_min here are
    its values for disentangling. An error of k_p / k_i nats or more (10 here, where C jumps) can
    put I_t so far down that the weight stays at beta_min: let C rise slowly.
    """

    def __init__(
        self,
        *,
        c_max: PositiveFloat = 18.0,
        c_steps: AtLeastOne = 10_000,
        k_p: NonNegativeFloat = 0.01,
        k_i: PositiveFloat = 0.001,
        beta_min: NonNegativeFloat = 1.0,
    ):
        super().__init__()
        self.c_max, self.c_steps = c_max, c_steps
        self.k_p, self.k_i, self.beta_min = k_p, k_i, beta_min
        self.register_buffer("integral", torch.zeros(()))
        self.register_buffer("beta", torch.tensor(float(beta_min)))

    def forward(self, vae: VAE, x: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss at the present weight; the weight of the next step follows from its KL."""
        capacity = linear(0.0, self.c_max, step, self.c_steps)
        beta = self.beta.clamp(min=self.beta_min)
        loss, terms, error = self.towards(vae, x, beta, capacity)
        self.integral.add_(self.k_i * error * (self.beta >= self.beta_min))
        self.beta.copy_(self.beta_min + self.k_p * error.sigmoid() + self.integral)
        return loss, terms


class FactorVAE(nn.Module):
    """recon + beta_t KL + gamma TC, TC by a density-ratio discriminator: Kim & Mnih 2018, eq. 2, 3.

    The discriminator (6 x 1000 units, leaky ReLU .2) tells codes from codes whose every latent was
    permuted over the batch (algorithm 1); TC is the mean of its logit, one here where the paper
    subtracts two. Both players use the same batch, as in the 2019 study. Its Adam: lr_d, betas .5
    and .9. The paper's beta_t is 1; here it may run log-linearly from beta_start (1 where it is not
    given) to beta over anneal_steps: from far below 1 on, every factor finds latents before the KL
    has put any to sleep, and the TC aligns them meanwhile. The loss is the sum of both players'
    losses, whose gradients are disjoint: the VAE gets that of its own loss through a discriminator
    held fixed, the discriminator that of d_loss.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        gamma: NonNegativeFloat = 35.0,
        lr_d: PositiveFloat = 1e-4,
        beta_start: PositiveFloat = 1.0,
        beta: PositiveFloat = 1.0,
        anneal_steps: AtLeastOne = 10_000,
    ):
        super().__init__()
        self.gamma = gamma
        self.beta_start, self.beta, self.anneal_steps = beta_start, beta, anneal_steps
        widths, layers = [latent_dim] + 5 * [1000], []
        for inputs, outputs in zip(widths, [*widths[1:], 1000], strict=True):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2, inplace=True)]
        self.discriminator = nn.Sequential(*layers, nn.Linear(1000, 1))
        parameters = self.discriminator.parameters()
        self.optimizers = {"d": torch.optim.Adam(parameters, lr_d, betas=(0.5, 0.9), fused=True)}

    def forward(self, vae: VAE, x: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Both players' losses; terms loss (the VAE's), tc, d_loss, d_real and d_fake (accuracy on
        codes and on permuted codes) beside the bound's."""
        terms, q = elbo_terms(vae, x)
        z = q.z.view_as(q.z)
        with vae.autocast(x):
            logits = self.discriminator(torch.cat([z, permute_latents(z.detach())])).float()
        real, fake = logits.chunk(2)
        d_loss = 0.5 * (F.softplus(-real) + F.softplus(fake)).mean()
        tc = real.detach().mean()
        # One pass serves both players, 9 % off a step's time: a logit's slope in z weighs
        # -sigmoid(-real) / 2B in d_loss and gamma / B in gamma TC, and z hands on the latter.
        ratio = -2 * self.gamma * (1 + real.detach().clamp(max=MAX_LOGIT).exp())
        if z.requires_grad:
            z.register_hook(lambda grad: ratio * grad)
        beta = log_linear(self.beta_start, self.beta, step, self.anneal_steps)
        loss = terms["recon"] + beta * terms["kl"] + self.gamma * tc
        right = {"d_real": (real > 0).float().mean(), "d_fake": (fake < 0).float().mean()}
        moves = {"beta": loss.new_full((), beta)} if self.beta_start != self.beta else {}
        return loss + d_loss, {"loss": loss} | terms | {"tc": tc, "d_loss": d_loss} | right | moves


def permute_latents(z: Tensor) -> Tensor:
    """z (B, D) with every column in an order of its own: samples of the product of marginals."""
    return z.gather(0, torch.rand_like(z).argsort(0))


def beta_tcvae(
    vae: VAE,
    x: Tensor,
    step: int,
    dataset_size: int,
    *,
    alpha: NonNegativeFloat = 1.0,
    beta: NonNegativeFloat = 6.0,
    gamma: NonNegativeFloat = 1.0,
    sampling: Literal["mws", "mss"] = "mss",
) -> tuple[Tensor, dict[str, Tensor]]:
    """recon + alpha MI + beta TC + gamma dwKL: Chen et al. 2018, eq. 4.

    The three parts add up to a sampled KL; what they have in common is taken from the closed form,
    recon + KL + (alpha - 1) MI + (beta - 1) TC + (gamma - 1) dwKL, the same in expectation with
    less variance. sampling: minibatch-weighted (biased, see log_weights) or -stratified.
    """
    terms, q = elbo_terms(vae, x)
    parts = decompose_kl(q, dataset_size, sampling)
    loss = terms["recon"] + terms["kl"]
    for weight, part in zip((alpha, beta, gamma), parts.values(), strict=True):
        loss = loss + (weight - 1) * part
    return loss, terms | parts


def decompose_kl(
    q: Posterior, dataset_size: int, sampling: Literal["mws", "mss"]
) -> dict[str, Tensor]:
    """mi, tc and dwkl of a batch of samples, nats; they sum to its mean log q(z|x) / p(z).

    Index-code mutual information, total correlation and dimension-wise KL: Chen et al. 2018, eq. 2.
    """
    density = log_normal(q.z[:, None], q.mu, q.logvar)  # (B, B, D): sample i under posterior j
    weights = log_weights(len(q.z), dataset_size, sampling, q.z.device)
    joint = (weights + density.sum(2)).logsumexp(1)  # log q(z), (B,)
    marginals = (weights[..., None] + density).logsumexp(1).sum(1)  # sum of log q(z_d), (B,)
    own = density.diagonal().sum(0)  # log q(z | x), (B,)
    prior = log_normal(q.z, torch.zeros(()), torch.zeros(())).sum(1)
    parts = {"mi": own - joint, "tc": joint - marginals, "dwkl": marginals - prior}
    return {name: part.mean() for name, part in parts.items()}


def log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, exp(logvar)), elementwise with broadcasting, nats."""
    return -0.5 * ((z - mu).square() * (-logvar).exp() + logvar + math.log(2 * math.pi))


def log_weights(
    batch_size: int,
    dataset_size: int,
    sampling: Literal["mws", "mss"],
    device: torch.device | None = None,
) -> Tensor:
    """log W (B, B): q(z_i) is estimated by sum_j W_ij q(z_i | x_j); Chen et al. 2018, app. C.

    "mws": 1 / (N B) throughout, which lowers log q(z) and each log q(z_d) by up to log N. "mss":
    the sample's own image, on the diagonal, counts once in N, one other stands for the part that
    the batch leaves over, the rest share what remains; rows sum to 1. Raises ValueError for a batch
    of one and for one larger than the data set.
    """
    if batch_size < 2:
        raise ValueError("train.batch_size: an estimate of q(z) takes 2 images a process or more")
    if dataset_size < batch_size:
        raise ValueError(
            f"train.batch_size: {batch_size} is not allowed with {dataset_size} images"
        )
    n, others = dataset_size, batch_size - 1
    if sampling == "mws":
        return torch.full((batch_size, batch_size), -math.log(n * batch_size), device=device)
    weights = torch.full((batch_size, batch_size), 1 / others, device=device)
    weights.fill_diagonal_(1 / n)
    for one_other in (weights.diagonal(1), weights[-1, 0]):  # one a row
        one_other.fill_((n - others) / (n * others))
    return weights.log()


def dip_vae_i(
    vae: VAE,
    x: Tensor,
    step: int,
    *,
    lambda_od: NonNegativeFloat = 10.0,
    lambda_d: NonNegativeFloat = 100.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """recon + KL + a penalty that holds Cov(mu) near the identity: Kumar et al. 2018, eq. 6."""
    terms, q = elbo_terms(vae, x)
    return _add_penalty(terms, covariance(q.mu), lambda_od, lambda_d)


def dip_vae_ii(
    vae: VAE,
    x: Tensor,
    step: int,
    *,
    lambda_od: NonNegativeFloat = 10.0,
    lambda_d: NonNegativeFloat = 10.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same for the covariance of z, Cov(mu) + diag(E[sigma^2]): Kumar et al. 2018, eq. 7."""
    terms, q = elbo_terms(vae, x)
    total = covariance(q.mu) + q.logvar.exp().mean(0).diag()
    return _add_penalty(terms, total, lambda_od, lambda_d)


def covariance(mu: Tensor) -> Tensor:
    """Covariance over the batch (divisor B, as in the paper's code): mu (B, D) -> (D, D)."""
    centred = mu - mu.mean(0)
    return centred.t() @ centred / len(mu)


def _add_penalty(
    terms: dict[str, Tensor], matrix: Tensor, lambda_od: float, lambda_d: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """lambda_od times the squares off the diagonal, lambda_d times those of the diagonal less 1."""
    dip_d = (matrix.diagonal() - 1).square().sum()
    dip_od = matrix.square().sum() - matrix.diagonal().square().sum()
    loss = terms["recon"] + terms["kl"] + lambda_od * dip_od + lambda_d * dip_d
    return loss, terms | {"dip_od": dip_od, "dip_d": dip_d}


OBJECTIVES = {
    "vae": vae_elbo,
    "beta_vae": beta_vae,
    "annealed_beta_vae": annealed_beta_vae,
    "capacity_vae": capacity_vae,
    "controlled_vae": ControlledVAE,
    "control_vae": ControlVAE,
    "factor_vae": FactorVAE,
    "beta_tcvae": beta_tcvae,
    "dip_vae_i": dip_vae_i,
    "dip_vae_ii": dip_vae_ii,
}
