"""Total correlation, covariance penalties and the controller: closed forms, and who moves what."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_model
from models.objectives import (
    OBJECTIVES,
    FactorVAE,
    Posterior,
    covariance,
    decompose_kl,
    elbo_terms,
    log_weights,
    permute_latents,
)

SAMPLINGS = ["mws", "mss"]
RHO, STD = 0.8, 0.4  # of a Gaussian aggregate posterior, and of every posterior in it


def make(name, **settings):
    torch.manual_seed(0)
    return build_model((1, 64, 64), {"name": "vae"}, {"name": name} | settings, 1000)


def images(n=8):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, 1, 64, 64, generator=generator) < 0.1).float()


def posterior(mu, std):
    mu = torch.as_tensor(mu, dtype=torch.float64)
    return Posterior(mu + std * torch.randn_like(mu), mu, torch.full_like(mu, 2 * math.log(std)))


# Objective -> settings with which it is the VAE.
PLAIN = {
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


def test_all_but_capacity_have_the_vae_as_a_special_case():
    missing = set(OBJECTIVES) - set(PLAIN) - {"capacity_vae"}
    assert not missing, f"add to PLAIN with which settings {missing} is a VAE, or name it here"


@pytest.mark.parametrize("name", PLAIN)
def test_the_special_case_takes_the_vae_s_step(name):
    ours, plain = make(name, **PLAIN[name]), make("vae")
    for model in (ours, plain):
        torch.manual_seed(3)
        model.train_step(images(), 0)
    for part in ("encoder", "decoder"):
        weights = getattr(plain, part).state_dict()
        for key, value in getattr(ours, part).state_dict().items():
            torch.testing.assert_close(value, weights[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_seed_s_vae_starts_the_same_under_every_objective(name):
    weights = make("vae").state_dict()
    ours = make(name).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in weights.items())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_parts_of_the_kl_add_up_to_the_sampled_kl(sampling):
    q = posterior(torch.randn(32, 4), 0.7)
    parts = decompose_kl(q, 5000, sampling)
    own = torch.distributions.Normal(q.mu, (0.5 * q.logvar).exp()).log_prob(q.z)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(q.z)
    torch.testing.assert_close(sum(parts.values()), (own - prior).sum(1).mean())


@pytest.mark.parametrize("copies", [2, 3])
def test_copied_codes_have_the_total_correlation_of_their_entropy(copies):
    # 50 images far apart along a line: each extra copy repeats log 50 nats
    line = torch.arange(50.0)[:, None].repeat(1, copies)
    parts = decompose_kl(posterior(line, 1e-3), 50, "mss")
    assert parts["mi"].item() == pytest.approx(math.log(50), abs=1e-6)
    assert parts["tc"].item() == pytest.approx((copies - 1) * math.log(50), abs=1e-6)


def test_independent_codes_have_no_total_correlation():
    grid = torch.cartesian_prod(torch.arange(20.0), torch.arange(25.0))
    torch.manual_seed(0)
    grid = grid[torch.randperm(500)]  # else the one light weight of a row always meets a neighbour
    parts = decompose_kl(posterior(grid, 1e-3), len(grid), "mss")
    assert parts["mi"].item() == pytest.approx(math.log(500), abs=1e-6)
    assert abs(parts["tc"].item()) < 0.01  # weights 1 / 499 where 1 / 500 would be exact


@pytest.mark.parametrize("rho", [0.0, RHO])
def test_stratified_sampling_finds_the_parts_of_a_gaussian(rho):
    # z ~ N(0, [[1, rho], [rho, 1]]) as a mixture of 50,000 posteriors of deviation STD
    total = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    root = torch.linalg.cholesky(total - STD**2 * torch.eye(2))
    torch.manual_seed(0)
    found = []
    for _ in range(20):
        mu = torch.randn(512, 2, dtype=torch.float64) @ root.t()
        found.append(torch.stack(list(decompose_kl(posterior(mu, STD), 50_000, "mss").values())))
    mi, tc, dwkl = torch.stack(found).mean(0).tolist()
    expected_tc = -0.5 * math.log(1 - rho**2)
    expected_mi = 0.5 * math.log(1 - rho**2) - 2 * math.log(STD)
    assert tc == pytest.approx(expected_tc, abs=0.03)  # 20 x 512 samples: standard error .01
    assert mi == pytest.approx(expected_mi, abs=0.03)
    assert dwkl == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(("batch_size", "n"), [(4, 100), (64, 737_280), (2, 2), (5, 5)])
def test_stratified_weights_have_their_own_image_on_the_diagonal(batch_size, n):
    weights = log_weights(batch_size, n, "mss").exp().double()
    torch.testing.assert_close(weights.sum(1), torch.ones(batch_size).double())
    torch.testing.assert_close(weights.diagonal(), torch.full((batch_size,), 1 / n).double())
    left_over = (n - batch_size + 1) / (n * (batch_size - 1))
    assert (weights - left_over).abs().min(1).values.max() < 1e-7


def test_weighted_sampling_weighs_all_alike():
    torch.testing.assert_close(log_weights(4, 100, "mws"), torch.full((4, 4), -math.log(400)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_batch_larger_than_the_data_set_is_refused(sampling):
    with pytest.raises(ValueError, match=r"batch_size: 9 .* 8 images"):
        log_weights(9, 8, sampling)
    with pytest.raises(ValueError, match=r"batch_size: .* 2 images"):
        log_weights(1, 8, sampling)


def test_tcvae_weighs_the_parts():
    model = make("beta_tcvae", alpha=2.0, beta=5.0, gamma=0.5)
    loss, terms = model.objective(model, images(), 0)
    expected = terms["recon"] + terms["kl"] + terms["mi"] + 4 * terms["tc"] - 0.5 * terms["dwkl"]
    torch.testing.assert_close(loss, expected)


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
    players = {"vae": [*model.encoder.parameters(), *model.decoder.parameters()]}
    players["d"] = list(discriminator.parameters())
    torch.manual_seed(3)
    loss, terms = model.objective(model, images(), 0)
    loss.backward()
    torch.manual_seed(3)
    expected, q = elbo_terms(model, images())
    real = discriminator(q.z)
    fake = discriminator(permute_latents(q.z.detach()))
    cut = discriminator(q.z.detach())
    assert real.std() > 1
    losses = {"vae": expected["recon"] + expected["kl"] + 35 * real.mean()}
    losses["d"] = 0.5 * (F.softplus(-cut) + F.softplus(fake)).mean()
    for name, own in players.items():
        gradients = torch.autograd.grad(losses[name], own, retain_graph=True)
        for parameter, gradient in zip(own, gradients, strict=True):
            rounding = 1e-5 * float(gradient.abs().max())  # of sums in another order
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=rounding)
    torch.testing.assert_close(terms["tc"], real.mean())
    torch.testing.assert_close(terms["loss"], losses["vae"])
    torch.testing.assert_close(terms["d_loss"], losses["d"])
    torch.testing.assert_close(loss, losses["vae"] + losses["d"])


def test_a_discriminator_that_is_sure_leaves_finite_gradients():
    model = make("factor_vae")
    with torch.no_grad():
        model.objective.discriminator[-1].bias.fill_(200.0)
    model.objective(model, images(), 0)[0].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_players_of_factor_vae_step_and_nothing_is_overwritten_in_place(dtype):
    model = make("factor_vae")
    model.dtype = dtype
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for step in range(2):
        terms = model.train_step(images(), step)
    assert all((value != before[key]).any() for key, value in model.state_dict().items())
    assert 0 <= terms["d_real"] <= 1
    assert terms["d_loss"].item() == pytest.approx(math.log(2), abs=0.1)  # chance


@pytest.mark.parametrize(("step", "beta"), [(0, 0.1), (5, math.sqrt(0.05)), (10, 0.5), (99, 0.5)])
def test_factor_vae_anneals_its_beta(step, beta):
    model = make("factor_vae", gamma=2.0, beta_start=0.1, beta=0.5, anneal_steps=10)
    _, terms = model.objective(model, images(), step)
    assert float(terms["beta"]) == pytest.approx(beta)
    expected = terms["recon"] + beta * terms["kl"] + 2 * terms["tc"]
    torch.testing.assert_close(terms["loss"], expected)
    assert "beta" not in make("factor_vae").train_step(images(), step)  # the paper's: 1 throughout


def test_the_discriminator_of_the_paper():
    widths = [m.out_features for m in FactorVAE(10).discriminator if isinstance(m, nn.Linear)]
    assert widths == 6 * [1000] + [1]
    assert FactorVAE(10).optimizers["d"].defaults["betas"] == (0.5, 0.9)


def test_the_discriminator_s_logit_becomes_the_total_correlation():
    objective = FactorVAE(2)
    objective.discriminator = nn.Sequential(  # smaller: a test's worth of steps is enough for it
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.Adam(objective.discriminator.parameters(), 3e-3)
    objective.optimizers = {"d": optimizer}
    torch.manual_seed(0)

    class Toy(nn.Module):
        """A stand-in whose codes are a correlated Gaussian."""

        def __call__(self, x):
            first, second = torch.randn(2, 2048, 1)
            z = torch.cat([first, RHO * first + math.sqrt(1 - RHO**2) * second], 1)
            return x.new_zeros(2048, 1), z, z, torch.zeros_like(z)

        def autocast(self, x):
            return torch.autocast("cpu", enabled=False)

    found = []
    for step in range(600):
        loss, terms = objective(Toy(), torch.zeros(2048, 1), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(terms["tc"].item())
    mean = sum(found[-200:]) / 200
    assert mean == pytest.approx(
        -0.5 * math.log(1 - RHO**2), abs=0.06
    )  # .511; spread of a batch .02


def test_dip_penalties_in_closed_form():
    mu = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, -2.0], [-1.0, 2.0]])  # Cov diag(1, 4)
    torch.testing.assert_close(covariance(mu), torch.diag(torch.tensor([1.0, 4.0])))
    mixed = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(covariance(mixed), torch.ones(2, 2))


@pytest.mark.parametrize(("name", "extra"), [("dip_vae_i", 0.0), ("dip_vae_ii", 1.0)])
def test_dip_penalises_the_covariance_of_the_means_or_of_the_samples(name, extra):
    model = make(name, lambda_od=3.0, lambda_d=5.0)
    torch.manual_seed(3)
    loss, terms = model.objective(model, images(), 0)
    mu, logvar = model.posterior(images())
    matrix = torch.cov(mu.t(), correction=0) + extra * logvar.exp().mean(0).diag()
    d = (matrix.diagonal() - 1).square().sum()
    od = (matrix - matrix.diagonal().diag()).square().sum()
    expected = terms["recon"] + terms["kl"] + 3 * od + 5 * d
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


def test_the_controller_weighs_more_above_its_target_and_less_below():
    model = make("controlled_vae", c_max=5.0, c_steps=10, k_i=0.01, beta_start=100.0)
    objective = model.objective
    with torch.no_grad():
        objective.log_beta.fill_(math.log(10.0))
    for step, target in ((0, 0.0), (5, 2.5), (50, 5.0)):
        before = objective.log_beta.exp().item()
        loss, terms = objective(model, images(), step)
        assert terms["capacity"].item() == target
        torch.testing.assert_close(loss, terms["recon"] + before * terms["kl"])
        assert terms["beta"].item() == pytest.approx(before)
        moved = math.exp(0.01 * (terms["kl"].item() - target))
        assert objective.log_beta.exp().item() == pytest.approx(before * moved, rel=1e-5)


def test_the_controller_stays_within_its_range_and_is_saved():
    model = make("controlled_vae", c_max=1e6, c_steps=1, k_i=1.0, beta_min=2.0, beta_start=50.0)
    model.train_step(images(), 0)
    assert model.objective.log_beta.exp().item() == pytest.approx(50)  # no more than at the start
    model.train_step(images(), 10)
    assert model.objective.log_beta.exp().item() == pytest.approx(2)
    assert "objective.log_beta" in model.state_dict()


def test_a_controller_s_empty_range_is_refused():
    with pytest.raises(ValueError, match=r"beta_min: 5.0 .* beta_start, 2.0"):
        make("controlled_vae", beta_min=5.0, beta_start=2.0)


def test_control_vae_is_the_paper_s_algorithm():
    """Step by step against algorithm 1 written out in plain numbers, through the wind-up too."""
    settings = {"c_max": 100.0, "c_steps": 4, "k_p": 0.5, "k_i": 0.002, "beta_min": 1.0}
    model = make("control_vae", **settings)
    integral, weight = 0.0, 1.0
    with torch.no_grad():
        model.encoder.head.bias[10:] = -3.0  # a KL of 10 nats and more
    for step in (0, 1, 2, 3, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0):  # KL above C, far below, above again
        loss, terms = model.objective(model, images(), step)
        assert terms["beta"].item() == pytest.approx(max(weight, 1.0), rel=1e-5)
        torch.testing.assert_close(loss, terms["recon"] + max(weight, 1.0) * terms["kl"])
        error = 25.0 * step - terms["kl"].item()
        if weight >= 1.0:
            integral -= 0.002 * error
        weight = 1.0 + 0.5 / (1 + math.exp(error)) + integral
    assert weight != pytest.approx(1.0)
    assert {"objective.integral", "objective.beta"} <= set(model.state_dict())


def test_a_weight_at_its_floor_does_not_wind_up():
    model = make("control_vae", c_max=1e3, c_steps=1, k_i=0.01)
    for _ in range(50):
        model.objective(model, images(), 1)  # KL far below C
    assert -10.1 < model.objective.integral.item() < -9.0  # one step's worth
    assert model.objective.beta.item() < 1.0
