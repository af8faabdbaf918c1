"""What a VAE minimises: objective(vae, x, step, **hyperparameters) -> (loss, terms).

x is (B, C, H, W) in [0, 1]; loss and terms are 0-d tensors in nats per image: summed over pixels
and latents, averaged over the batch, so that beta and gamma mean what the papers mean. The keyword
arguments are the keys of the YAML section `objective`, with their types, ranges and defaults.
"""

from torch import Tensor

from models.checks import AtLeastOne, NonNegativeFloat, PositiveFloat
from models.fast import bernoulli_nll
from models.schedules import log_linear
from models.vae import VAE, gaussian_kl


def elbo_terms(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    """recon, kl, elbo and the KL of every latent (kl_0 ...) of one batch, nats per image."""
    logits, _, mu, logvar = vae(x)
    recon = bernoulli_nll(logits, x) / len(x)
    kl = gaussian_kl(mu, logvar).mean(0)  # (D,)
    total = kl.sum()
    per_latent = {f"kl_{i}": value for i, value in enumerate(kl.detach().unbind())}
    return {"recon": recon, "kl": total, "elbo": -recon - total} | per_latent


def beta_vae(
    vae: VAE, x: Tensor, step: int, *, beta: NonNegativeFloat = 4.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """recon + beta KL: Higgins et al. 2017, equation 4; beta = 1 is the VAE."""
    terms = elbo_terms(vae, x)
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
    return loss, terms | {"beta": loss.new_tensor(beta_t)}


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
    terms = elbo_terms(vae, x)
    capacity = c_max * min(step / c_steps, 1.0)
    loss = terms["recon"] + gamma * (terms["kl"] - capacity).abs()
    return loss, terms | {"capacity": loss.new_tensor(capacity)}


OBJECTIVES = {
    "vae": vae_elbo,
    "beta_vae": beta_vae,
    "annealed_beta_vae": annealed_beta_vae,
    "capacity_vae": capacity_vae,
}
