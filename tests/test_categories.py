"""A category beside the Gaussian latents: closed forms, assignment, gradients, codes, resume."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import assert_equal
from torch.distributions import Bernoulli

import results
import runs
import train
from models import NETWORKS, build_model, rotation
from models.categories import assign, capacity_penalty, category_information, category_kl
from models.objectives import beta_vae
from models.vae import gaussian_kl
from training.checkpoint import load_checkpoint

INFERENCES = ["assign", "gumbel"]
K = 3


def make(inference="assign", **model):
    torch.manual_seed(0)
    section = {"name": "vae", "categories": K, "category_inference": inference, "latent_dim": 5}
    return build_model((1, 64, 64), section | model, {"name": "vae"}, 1000)


def images(n=6):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, 1, 64, 64, generator=generator) < 0.1).float()


def with_effect(vae):
    """The VAE with random weights of the category, which are 0 at first."""
    first = next(m for m in vae.decoder.modules() if isinstance(m, torch.nn.Linear))
    torch.nn.init.normal_(first.weight.data[:, -K:])
    return vae


def test_kl_and_information_by_enumeration():
    q = torch.randn(7, K, generator=torch.Generator().manual_seed(0)).softmax(1).double()
    q[0] = torch.tensor([0.0, 1.0, 0.0])
    kl = information = 0.0
    for row in q.tolist():
        for p, mean in zip(row, q.mean(0).tolist(), strict=True):
            kl += p * math.log(p * K) / 7 if p else 0
            information += p * math.log(p / mean) / 7 if p else 0
    assert float(category_kl(q)) == pytest.approx(kl)
    assert float(category_information(q)) == pytest.approx(information)


@pytest.mark.parametrize(("crowding", "excess"), [(0.0, 1e-6), (0.1, 0.25), (100.0, 5.3)])
def test_the_assignment_costs_little_more_than_the_best_of_all(crowding, excess):
    nll = torch.randn(6, K, generator=torch.Generator().manual_seed(0))

    def cost(choice):
        counts = np.bincount(choice, minlength=K)
        return float(nll[range(6), choice].sum()) + crowding * (counts * (counts - 1) / 2).sum()

    best = min(cost(list(choice)) for choice in itertools.product(range(K), repeat=6))
    one_hot = assign(nll, crowding)
    assert torch.equal(one_hot.sum(1), torch.ones(6))
    assert best - 1e-6 <= cost(one_hot.argmax(1).tolist()) <= best + excess
    if crowding == 100.0:
        assert one_hot.sum(0).tolist() == [2, 2, 2]


def test_an_assigned_step_has_the_gradient_of_the_best_category():
    vae, x = with_effect(make()), images()
    torch.manual_seed(3)
    loss, terms = vae.objective(vae, x, 0)
    loss.backward()
    gradients = [p.grad.clone() for p in vae.parameters()]
    vae.zero_grad()

    torch.manual_seed(3)
    mu, logvar = vae.encoder(x)
    z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
    candidates = []
    for one_hot in torch.eye(K):
        logits = vae.decoder(torch.cat([z, one_hot.expand(6, K)], 1))
        candidates.append(-Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3)))
    nll = torch.stack(candidates).min(0).values  # differences are far above the crowding cost
    expected = (nll + gaussian_kl(mu, logvar).sum(1)).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["elbo"], -loss - math.log(K))
    for ours, p in zip(gradients, vae.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-3, atol=1e-4)


def test_a_gumbel_step_holds_the_kl_of_the_category_at_its_capacity():
    vae, x = make("gumbel", category_from=2, category_steps=10), images()
    for step, capacity in ((0, 0.0), (2, 0.0), (7, 0.5), (50, 1.0)):
        terms = vae.train_step(x, step)
        distance = (terms["kl_category"] - capacity * math.log(K)).abs()
        torch.testing.assert_close(terms["loss"], terms["recon"] + terms["kl"] + 30 * distance)
        torch.testing.assert_close(
            terms["elbo"], -terms["recon"] - terms["kl"] - terms["kl_category"]
        )
    logits = torch.randn(4, K, dtype=torch.float64, requires_grad=True)

    def penalty(logits):
        return capacity_penalty(category_kl(logits.softmax(1)), 0.5 * math.log(K))

    assert torch.autograd.gradcheck(penalty, logits)  # finite differences


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("inference", INFERENCES)
def test_a_category_changes_nothing_before_its_first_step(inference, network):
    vae, x = make(inference, network=network, category_from=3), images()
    for step in range(3):
        terms = vae.train_step(x, step)
        assert terms["kl_category"] == pytest.approx(0, abs=1e-6)
    codes = vae.encode(x)
    if inference == "assign":
        assert torch.equal(codes[:, 5], torch.zeros(6))
    other = torch.cat([codes[:, :5], (codes[:, 5:] + 1) % K], 1)
    assert torch.equal(vae.decode(codes), vae.decode(other))
    for step in range(3, 6):
        vae.train_step(x, step)
    assert not torch.equal(vae.decode(codes), vae.decode(other))


@torch.no_grad()
@pytest.mark.parametrize("inference", INFERENCES)
def test_a_category_is_the_last_code(inference):
    vae, x = with_effect(make(inference)).eval(), images(20)
    codes, logvar = vae.posterior(x)
    assert (codes.shape, logvar.shape) == ((20, 6), (20, 5))
    assert set(codes[:, 5].tolist()) <= {0.0, 1.0, 2.0}
    if inference == "assign":
        nll = []
        for c in range(K):
            z = torch.cat([codes[:, :5], torch.full((20, 1), float(c))], 1)
            nll.append(-Bernoulli(vae.decode(z)).log_prob(x).sum((1, 2, 3)))
        assert torch.equal(torch.stack(nll).argmin(0).float(), codes[:, 5])
    information = vae.information(x)
    torch.testing.assert_close(information[:5], gaussian_kl(codes[:, :5], logvar).mean(0))
    counts = torch.bincount(codes[:, 5].long()) / 20
    assert float(information[5]) == pytest.approx(float(torch.special.entr(counts).sum()))
    kl = results.latent_kl(codes.numpy(), logvar.numpy())
    assert kl == pytest.approx(information.numpy(), abs=1e-5)
    draws = vae.sample(3000, torch.Generator().manual_seed(0))
    assert torch.bincount(draws[:, 5].long()).tolist() == pytest.approx([1000] * K, abs=80)
    assert vae.decode(draws[:4]).shape == (4, 1, 64, 64)


@pytest.mark.parametrize("inference", INFERENCES)
def test_turned_latents_keep_images_and_category(inference, monkeypatch):
    monkeypatch.setattr(rotation, "ACTIVE_KL", 0.0)
    vae, x = with_effect(make(inference, rotate_at=[1])).eval(), images(400)
    codes, logvar = vae.posterior(x)
    before = vae.decode(codes)
    rotation.rotate_latents(vae, codes[:, :5].detach(), logvar.detach())
    turned = vae.encode(x)
    assert (turned - codes)[:, :5].abs().max() > 0.05
    assert torch.equal(turned[:, 5], codes[:, 5])
    torch.testing.assert_close(vae.decode(turned), before, atol=1e-4, rtol=1e-3)


def test_an_assigned_category_names_three_pictures():
    vae, pictures = make(lr=2e-3), torch.zeros(K, 1, 64, 64)
    pictures[0, :, :, :32] = pictures[1, :, :32] = pictures[2, :, 16:48, 16:48] = 1
    vae.objective = lambda vae, x, step: beta_vae(vae, x, step, beta=200.0)
    for step in range(40):
        vae.train_step(pictures.repeat(4, 1, 1, 1), step)
    assert sorted(vae.encode(pictures)[:, 5].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("inference", INFERENCES)
def test_a_run_with_a_category_resumes_bit_for_bit(command, tmp_path, inference):
    keys = [f"model.category_inference={inference}", "model.category_from=1"]
    for root, all_steps in (("straight", [4]), ("broken", [2, 4])):
        for steps in all_steps:
            run = command("config/twoD_category.yaml", *keys, runs=tmp_path / root, steps=steps)
            assert train.main(run) == 0
    a, b = (load_checkpoint(tmp_path / root / "small/seed0")[0] for root in ("straight", "broken"))
    for state in (a, b):
        del state["seconds"]
    assert_equal(a, b)
    run = runs.load(tmp_path / "straight/small/seed0", "cpu")
    codes, logvar = runs.encode(run.model, run.data)
    assert (codes.shape, logvar.shape) == ((48, 11), (48, 10))
