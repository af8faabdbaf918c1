"""Objectives: closed forms, schedules, controllers, and which loss moves which parameters."""

import inspect
import math
import re

import pytest
import torch
import torch.nn.functional as F

from models import MODELS, OBJECTIVES, build_model
from models.factor_vae import permute_latents
from models.objectives import decompose_kl, log_weights
from models.vae import Posterior, elbo_terms, gaussian_kl

RHO, STD = 0.8, 0.4  # of a Gaussian aggregate posterior, and of every posterior in it
PLAIN = {  # objective -> settings with which it is the VAE
    "vae": {},
    "beta_vae": {"beta": 1.0},
    "annealed_beta_vae": {"beta_start": 1.0, "beta": 1.0},
    "controlled_vae": {"beta_start": 1.0, "beta_min": 1.0},
    "control_vae": {"beta_min": 1.0},  # at its first step
    "factor_vae": {"gamma": 0.0},
    "beta_tcvae": {"beta": 1.0},
    "dip_vae_i": {"lambda_od": 0.0, "lambda_d": 0.0},
    "dip_vae_ii": {"lambda_od": 0.0, "lambda_d": 0.0},
}


def make(name, **settings):
    torch.manual_seed(0)
    return build_model((1, 64, 64), {"name": "vae"}, {"name": name} | settings, 1000)


def images(n=8):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, 1, 64, 64, generator=generator) < 0.1).float()


def loss_of(model, step=0):
    torch.manual_seed(3)
    return model.objective(model, images(), step)


def posterior(mu, std):
    mu = torch.as_tensor(mu, dtype=torch.float64)
    return Posterior(mu + std * torch.randn_like(mu), mu, torch.full_like(mu, 2 * math.log(std)))


@pytest.mark.parametrize("name", PLAIN)
def test_the_special_case_takes_the_step_of_the_vae(name):
    assert set(OBJECTIVES) - set(PLAIN) == {"capacity_vae"}, "add to PLAIN, or name it here"
    ours, plain = make(name, **PLAIN[name]), make("vae")
    first = ours.state_dict()  # the first weights depend on the seed alone
    assert all(torch.equal(first[key], value) for key, value in plain.state_dict().items())
    for model in (ours, plain):
        torch.manual_seed(3)
        model.train_step(images(), 0)
    for part in ("encoder", "decoder"):
        weights = getattr(plain, part).state_dict()
        for key, value in getattr(ours, part).state_dict().items():
            torch.testing.assert_close(value, weights[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("function", [*MODELS.values(), *OBJECTIVES.values()])
def test_every_option_has_a_type_and_a_description(function):
    arguments = inspect.signature(function).parameters.values()
    options = [p for p in arguments if p.kind is p.KEYWORD_ONLY]
    assert all(option.annotation is not option.empty for option in options)
    text = inspect.getdoc(function).partition("\n\nArgs:\n")[2].partition("\n\n")[0]
    described = re.findall(r"^    (\w+): .", text, re.MULTILINE)
    assert {option.name for option in options} <= set(described)


def test_terms_are_nats_per_image():
    model, x = make("vae"), images()
    loss, terms = loss_of(model)
    torch.manual_seed(3)
    logits, (_, mu, logvar, _) = model(x)
    likelihood = torch.distributions.Bernoulli(logits=logits).log_prob(x)
    torch.testing.assert_close(terms["recon"], -likelihood.sum() / len(x))
    torch.testing.assert_close(terms["kl"], gaussian_kl(mu, logvar).sum() / len(x))
    torch.testing.assert_close(loss, terms["recon"] + terms["kl"])
    torch.testing.assert_close(terms["elbo"], -loss)
    torch.testing.assert_close(loss_of(make("beta_vae", beta=4.0))[0], loss + 3 * terms["kl"])
    per_latent = torch.stack([terms[f"kl_{i}"] for i in range(10)])
    torch.testing.assert_close(per_latent.sum(), terms["kl"])
    loss, terms = loss_of(make("beta_tcvae", alpha=2.0, beta=5.0, gamma=0.5))
    expected = terms["recon"] + terms["kl"] + terms["mi"] + 4 * terms["tc"] - 0.5 * terms["dwkl"]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.5), (10, 1.0), (1000, 1.0)])
def test_capacity_grows_linearly_and_beta_changes_log_linearly(step, share):
    loss, terms = loss_of(make("capacity_vae", gamma=100.0, c_max=25.0, c_steps=10), step)
    assert terms["capacity"] == 25 * share
    torch.testing.assert_close(loss, terms["recon"] + 100 * (terms["kl"] - 25 * share).abs())
    for name, settings in (("annealed_beta_vae", {}), ("factor_vae", {"gamma": 2.0})):
        model = make(name, beta_start=0.1, beta=0.5, anneal_steps=10, **settings)
        loss, terms = loss_of(model, step)
        assert float(terms["beta"]) == pytest.approx(0.1 * 5**share)
        expected = terms["recon"] + terms["beta"] * terms["kl"] + 2 * terms.get("tc", 0)
        torch.testing.assert_close(terms.get("loss", loss), expected)
    assert "beta" not in loss_of(make("factor_vae"), step)[1]  # 1 throughout


@pytest.mark.parametrize("rho", [0.0, RHO])
def test_the_parts_of_a_gaussian(rho):
    # z ~ N(0, [[1, rho], [rho, 1]]) as a mixture of 50,000 posteriors of deviation STD
    total = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    root = torch.linalg.cholesky(total - STD**2 * torch.eye(2))
    torch.manual_seed(0)
    draws = []
    for _ in range(20):
        mu = torch.randn(512, 2, dtype=torch.float64) @ root.t()
        draws.append(torch.stack(list(decompose_kl(posterior(mu, STD), 50_000).values())))
    expected_tc = -0.5 * math.log(1 - rho**2)
    expected = [-expected_tc - 2 * math.log(STD), expected_tc, 0]
    # 20 x 512 samples: standard error 0.01
    assert torch.stack(draws).mean(0).tolist() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("batch_size", "n"), [(4, 100), (64, 737_280), (2, 2), (5, 5)])
def test_stratified_weights_have_their_own_image_on_the_diagonal(batch_size, n):
    weights = log_weights(batch_size, n).exp().double()
    torch.testing.assert_close(weights.sum(1), torch.ones(batch_size).double())
    torch.testing.assert_close(weights.diagonal(), torch.full((batch_size,), 1 / n).double())
    left_over = (n - batch_size + 1) / (n * (batch_size - 1))
    assert (weights - left_over).abs().min(1).values.max() < 1e-7
    with pytest.raises(ValueError, match=rf"batch_size: {n + 1}; allowed: at most {n} images"):
        log_weights(n + 1, n)


@pytest.mark.parametrize(("name", "extra"), [("dip_vae_i", 0.0), ("dip_vae_ii", 1.0)])
def test_dip_penalises_the_covariance_of_the_means_or_of_the_samples(name, extra):
    model = make(name, lambda_od=3.0, lambda_d=5.0)
    loss, terms = loss_of(model)
    mu, logvar = model.posterior(images())
    matrix = torch.cov(mu.t(), correction=0) + extra * logvar.exp().mean(0).diag()
    d = (matrix.diagonal() - 1).square().sum()
    od = (matrix - matrix.diagonal().diag()).square().sum()
    expected = terms["recon"] + terms["kl"] + 3 * od + 5 * d
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


def test_permuted_latents_keep_their_marginals_and_lose_their_dependence():
    z = torch.randn(2000, 1).repeat(1, 3)
    permuted = permute_latents(z)
    torch.testing.assert_close(permuted.sort(0).values, z.sort(0).values)
    assert (torch.corrcoef(permuted.t()) - torch.eye(3)).abs().max() < 0.1  # 4 / sqrt(2000)


@pytest.mark.parametrize("shift", [0, 50, -50])  # of the logits, nats
def test_each_player_of_factor_vae_gets_the_gradient_of_its_own_loss(shift):
    model = make("factor_vae")
    discriminator = model.objective.discriminator
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(3)  # logits of several nats: both players have something to do
        discriminator[-1].bias.add_(shift)
    loss, terms = loss_of(model)
    loss.backward()
    torch.manual_seed(3)
    expected, q = elbo_terms(model, images())
    real, fake = discriminator(q.z), discriminator(permute_latents(q.z.detach()))
    assert real.std() > 1
    d_loss = 0.5 * (F.softplus(-discriminator(q.z.detach())) + F.softplus(fake)).mean()
    losses = {"loss": expected["recon"] + expected["kl"] + 35 * real.mean(), "d_loss": d_loss}
    vae = [*model.encoder.parameters(), *model.decoder.parameters()]
    players = {"loss": vae, "d_loss": list(discriminator.parameters())}
    for name, own in players.items():
        gradients = torch.autograd.grad(losses[name], own, retain_graph=True)
        for parameter, gradient in zip(own, gradients, strict=True):
            rounding = 1e-5 * float(gradient.abs().max())  # of sums in another order
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=rounding)
        torch.testing.assert_close(terms[name], losses[name])
    torch.testing.assert_close(terms["tc"], real.mean())
    torch.testing.assert_close(loss, losses["loss"] + losses["d_loss"])


def test_a_discriminator_that_is_sure_leaves_finite_gradients():
    model = make("factor_vae")
    torch.nn.init.constant_(model.objective.discriminator[-1].bias, 200.0)
    loss_of(model)[0].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_controlled_vae_weighs_more_above_its_target_and_less_below():
    model = make("controlled_vae", c_max=5.0, c_steps=10, k_i=0.01, beta_start=100.0)
    model.objective.over_processes = lambda kl: kl + 5  # the mean of several processes
    log_beta = model.objective.log_beta
    log_beta.fill_(math.log(10.0))
    for step, target in ((0, 0.0), (5, 2.5), (50, 5.0)):
        before = log_beta.exp().item()
        loss, terms = loss_of(model, step)
        assert terms["capacity"].item() == target
        torch.testing.assert_close(loss, terms["recon"] + before * terms["kl"])
        assert terms["beta"].item() == pytest.approx(before)
        moved = math.exp(0.01 * (terms["kl"].item() + 5 - target))
        assert log_beta.exp().item() == pytest.approx(before * moved, rel=1e-5)


def test_controlled_vae_stays_within_its_range_and_is_saved():
    model = make("controlled_vae", c_max=1e6, c_steps=1, k_i=1.0, beta_min=2.0, beta_start=50.0)
    for step, beta in ((0, 50), (10, 2)):
        model.train_step(images(), step)
        assert model.objective.log_beta.exp().item() == pytest.approx(beta)
    assert "objective.log_beta" in model.state_dict()
    with pytest.raises(ValueError, match=r"beta_min: 5.0 .* beta_start, 2.0"):
        make("controlled_vae", beta_min=5.0, beta_start=2.0)


def test_control_vae_is_the_algorithm_of_the_paper():
    """Step by step against algorithm 1 in plain numbers, with the integral standing still too."""
    settings = {"c_max": 100.0, "c_steps": 4, "k_p": 0.5, "k_i": 0.002, "beta_min": 1.0}
    model = make("control_vae", **settings)
    model.objective.over_processes = lambda kl: kl + 5
    integral, weight = 0.0, 1.0
    with torch.no_grad():
        model.encoder.head.bias[10:] = -3.0  # a KL of 10 nats and more
    for step in (0, 1, 2, 3, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0):  # KL above C, far below, above again
        loss, terms = loss_of(model, step)
        assert terms["beta"].item() == pytest.approx(max(weight, 1.0), rel=1e-5)
        torch.testing.assert_close(loss, terms["recon"] + max(weight, 1.0) * terms["kl"])
        error = 25.0 * step - terms["kl"].item() - 5
        if weight >= 1.0:
            integral -= 0.002 * error
        weight = 1.0 + 0.5 / (1 + math.exp(error)) + integral
    assert weight != pytest.approx(1.0)
    assert {"objective.integral", "objective.beta"} <= set(model.state_dict())
