"""What a VAE minimises: objective(vae, x, step, **hyperparameters) -> (loss, terms).

Loss and terms are in nats per image: sums over pixels and latents, means over the batch. Terms are
the columns of the log, the same at every step. An objective with a state is an nn.Module, saved
with the model; its `optimizers` step with the VAE's.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from models.factor_vae import FactorVAE
from models.graphs import scheduled
from models.hyperparameters import Count, NonNegative, Positive, Schedule, at_step, ramp
from models.vae import VAE, Loss, Posterior, Terms, elbo_terms


def vae_elbo(vae: VAE, x: Tensor, step: int) -> Loss:
    """recon + KL: Kingma & Welling 2014, eq. 10, https://arxiv.org/abs/1312.6114."""
    return beta_vae(vae, x, step, beta=1.0)


def beta_vae(vae: VAE, x: Tensor, step: int, *, beta: Schedule = 4.0) -> Loss:
    """recon + beta KL: Higgins et al. 2017, eq. 4, https://openreview.net/forum?id=Sy2fzU9gl.

    Args:
        beta: weight of the KL; {step: weight, ...} is log-linear between the steps.
    """
    terms, _ = elbo_terms(vae, x)
    if not isinstance(beta, dict):
        return terms["recon"] + beta * terms["kl"], terms
    beta_t = scheduled("beta", partial(at_step, beta), step, like=terms["kl"])
    return terms["recon"] + beta_t * terms["kl"], terms | {"beta": beta_t}


def annealed_beta_vae(
    vae: VAE,
    x: Tensor,
    step: int,
    *,
    beta_start: Positive = 100.0,  # large: what changes most pixels gets a latent before the rest
    beta: Positive = 4.0,
    anneal_steps: Count = 10_000,
) -> Loss:
    """recon + beta_t KL, with beta_t log-linear from beta_start to beta.

    Args:
        beta_start: weight of the KL at step 0.
        beta: weight of the KL from anneal_steps on.
        anneal_steps: steps over which the weight changes.
    """
    return beta_vae(vae, x, step, beta={0: beta_start, anneal_steps: beta})


def capacity_vae(
    vae: VAE,
    x: Tensor,
    step: int,
    *,
    gamma: Positive = 100.0,
    c_max: NonNegative = 25.0,
    c_steps: Count = 10_000,
) -> Loss:
    """recon + gamma |KL - C|: Burgess et al. 2018, eq. 8, https://arxiv.org/abs/1804.03599.

    Args:
        gamma: weight of the distance between the KL and its capacity C.
        c_max: final capacity in nats.
        c_steps: steps over which the capacity rises linearly from 0.
    """
    terms, _ = elbo_terms(vae, x)
    capacity = scheduled("capacity", partial(ramp, c_max, c_steps), step, like=terms["kl"])
    return terms["recon"] + gamma * (terms["kl"] - capacity).abs(), terms | {"capacity": capacity}


def beta_tcvae(
    vae: VAE,
    x: Tensor,
    step: int,
    dataset_size: int,
    *,
    alpha: NonNegative = 1.0,
    beta: NonNegative = 6.0,
    gamma: NonNegative = 1.0,
) -> Loss:
    """recon + alpha MI + beta TC + gamma dwKL: Chen et al. 2018, https://arxiv.org/abs/1802.04942.

    Equation 4. A closed-form KL plus sampled parts with their weights - 1 has less variance.

    Args:
        alpha: weight of the mutual information between image and code.
        beta: weight of the total correlation.
        gamma: weight of the dimension-wise KL.
    """
    terms, q = elbo_terms(vae, x)
    parts = decompose_kl(q, dataset_size)
    loss = terms["recon"] + terms["kl"]
    for weight, part in zip((alpha, beta, gamma), parts.values(), strict=True):
        loss = loss + (weight - 1) * part
    return loss, terms | parts


def decompose_kl(q: Posterior, dataset_size: int) -> Terms:
    """mi, tc and dwkl of a batch in nats (Chen et al. 2018, eq. 2); their sum is its sampled KL."""
    density = log_normal(q.z[:, None], q.mu, q.logvar)  # (B, B, D): sample i under posterior j
    weights = log_weights(len(q.z), dataset_size, q.z.device)
    joint = (weights + density.sum(2)).logsumexp(1)  # log q(z), (B,)
    marginals = (weights[..., None] + density).logsumexp(1).sum(1)  # sum of log q(z_d), (B,)
    own = density.diagonal().sum(0)  # log q(z | x), (B,)
    prior = log_normal(q.z, torch.zeros(()), torch.zeros(())).sum(1)
    parts = {"mi": own - joint, "tc": joint - marginals, "dwkl": marginals - prior}
    return {name: part.mean() for name, part in parts.items()}


def log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * ((z - mu).square() * (-logvar).exp() + logvar + math.log(2 * math.pi))


def log_weights(batch_size: int, dataset_size: int, device: torch.device | None = None) -> Tensor:
    """log W (B, B), with which q(z_i) is estimated by sum_j W_ij q(z_i | x_j).

    Minibatch-stratified sampling (Chen et al. 2018, appendix C): a sample's own image weighs 1 / N,
    and one other stands for all images outside the batch. Rows sum to 1.
    """
    if dataset_size < batch_size:
        raise ValueError(f"train.batch_size: {batch_size}; allowed: at most {dataset_size} images")
    n, others = dataset_size, batch_size - 1
    weights = torch.full((batch_size, batch_size), 1 / others, device=device)
    weights.fill_diagonal_(1 / n)
    for one_other in (weights.diagonal(1), weights[-1, 0]):  # one a row
        one_other.fill_((n - others) / (n * others))
    return weights.log()


def dip_vae_i(
    vae: VAE, x: Tensor, step: int, *, lambda_od: NonNegative = 10.0, lambda_d: NonNegative = 100.0
) -> Loss:
    """recon + KL + a penalty on Cov(mu): Kumar et al. 2018, eq. 6, https://arxiv.org/abs/1711.00848.

    Args:
        lambda_od: weight of the squared covariances.
        lambda_d: weight of the squared distances of the variances from 1.
    """
    terms, q = elbo_terms(vae, x)
    return _with_penalty(terms, covariance(q.mu), lambda_od, lambda_d)


def dip_vae_ii(
    vae: VAE, x: Tensor, step: int, *, lambda_od: NonNegative = 10.0, lambda_d: NonNegative = 10.0
) -> Loss:
    """recon + KL + a penalty on Cov(z): Kumar et al. 2018, eq. 7, https://arxiv.org/abs/1711.00848.

    Args:
        lambda_od: weight of the squared covariances.
        lambda_d: weight of the squared distances of the variances from 1.
    """
    terms, q = elbo_terms(vae, x)
    matrix = covariance(q.mu) + q.logvar.exp().mean(0).diag()  # of z
    return _with_penalty(terms, matrix, lambda_od, lambda_d)


def covariance(mu: Tensor) -> Tensor:
    """(B, D) -> (D, D) with divisor B, as in the paper's code; torch.cov waits for a GPU."""
    centred = mu - mu.mean(0)
    return centred.t() @ centred / len(mu)


def _with_penalty(terms: Terms, matrix: Tensor, lambda_od: float, lambda_d: float) -> Loss:
    dip_d = (matrix.diagonal() - 1).square().sum()
    dip_od = matrix.square().sum() - matrix.diagonal().square().sum()
    loss = terms["recon"] + terms["kl"] + lambda_od * dip_od + lambda_d * dip_d
    return loss, terms | {"dip_od": dip_od, "dip_d": dip_d}


class ControlledVAE(nn.Module):
    """recon + beta_t KL, with log beta += k_i (KL - C) at every step.

    Args:
        c_max: final capacity in nats; take the KL of a run with a beta that you would settle for.
        c_steps: steps over which the capacity rises linearly from 0.
        k_i: gain of the controller, per nat and step.
        beta_start: first and largest weight of the KL.
        beta_min: smallest weight of the KL.
    """

    def __init__(
        self,
        *,
        c_max: Positive = 12.0,
        c_steps: Count = 10_000,
        k_i: Positive = 0.01,
        beta_start: Positive = 100.0,
        beta_min: Positive = 1.0,
    ):
        super().__init__()
        if beta_min > beta_start:
            raise ValueError(f"objective.beta_min: {beta_min} is above beta_start, {beta_start}")
        self.over_processes = lambda kl: kl  # several processes replace it by their mean
        self.c_max, self.c_steps, self.k_i = c_max, c_steps, k_i
        self.log_range = math.log(beta_min), math.log(beta_start)
        self.register_buffer("log_beta", torch.tensor(math.log(beta_start)))

    def forward(self, vae: VAE, x: Tensor, step: int) -> Loss:
        loss, terms, error = _controlled(self, vae, x, step, self.log_beta.exp())
        self.log_beta.add_(self.k_i * error).clamp_(*self.log_range)
        return loss, terms


class ControlVAE(nn.Module):
    """recon + beta_t KL, with beta_t from a proportional-integral controller.

    Shao et al. 2020, algorithm 1: https://arxiv.org/abs/2004.05988. With e = C - KL, beta_t is
    beta_min + k_p / (1 + exp(e)) + I_t, at least beta_min. The integral I_t = I_{t-1} - k_i e
    stands still while the weight is below beta_min. C should rise slowly, because an error above
    k_p / k_i nats can keep the weight at beta_min.

    Args:
        c_max: final capacity in nats.
        c_steps: steps over which the capacity rises linearly from 0.
        k_p: gain of the proportional part.
        k_i: gain of the integral part, per nat and step.
        beta_min: first and smallest weight of the KL.
    """

    def __init__(
        self,
        *,
        c_max: Positive = 18.0,
        c_steps: Count = 10_000,
        k_p: NonNegative = 0.01,
        k_i: Positive = 0.001,
        beta_min: NonNegative = 1.0,
    ):
        super().__init__()
        self.over_processes = lambda kl: kl
        self.c_max, self.c_steps = c_max, c_steps
        self.k_p, self.k_i, self.beta_min = k_p, k_i, beta_min
        self.register_buffer("integral", torch.zeros(()))
        self.register_buffer("beta", torch.tensor(float(beta_min)))

    def forward(self, vae: VAE, x: Tensor, step: int) -> Loss:
        beta = self.beta.clamp(min=self.beta_min)
        loss, terms, error = _controlled(self, vae, x, step, beta)
        self.integral.add_(self.k_i * error * (self.beta >= self.beta_min))
        self.beta.copy_(self.beta_min + self.k_p * error.sigmoid() + self.integral)
        return loss, terms


def _controlled(
    controller: ControlledVAE | ControlVAE, vae: VAE, x: Tensor, step: int, beta: Tensor
) -> tuple[Tensor, Terms, Tensor]:
    """Loss and terms with weight beta, and the error KL - C."""
    loss, terms = beta_vae(vae, x, step, beta=beta)
    rise = partial(ramp, controller.c_max, controller.c_steps)
    capacity = scheduled("capacity", rise, step, like=loss)
    error = controller.over_processes(terms["kl"].detach()) - capacity
    return loss, terms | {"beta": beta, "capacity": capacity}, error


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
