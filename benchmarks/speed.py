"""Images per second beside the loop that anyone would write: python benchmarks/speed.py

Each measurement is a process of its own, plain and ours in turn (A B A B); nothing else should run.
Plain is float32, torch's own layers, a DataLoader with workers, one backward pass per player.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import files
import runs
from data import Batches, load_dataset, mix
from models import VAE, InfoGAN, build_model
from models.factor_vae import permute_latents
from models.vae import gaussian_kl
from training.device import choose_device, hardware
from training.folder import provenance
from training.log import Window

CONFIG = Path(__file__).resolve().parents[1] / "config"
IMAGES = 50_000  # of the plain loop; all images unpacked take 3 GB
STEPS = 20  # between two readings of the clock
ROUNDS, SECONDS = 2, 8  # measurements of each kind, and the length of one
CASES = {  # configuration -> batch size
    "twoD_annealed": 128,
    "twoD_infogan": 64,
    "twoD_infogan_sn": 64,
    "twoD_infogan_broadcast": 32,
    "twoD_factor_broadcast": 64,
}


def main() -> int:
    """Measure all cases in child processes; print a line for each and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    load_dataset("dsprites")  # rendered and cached before the first measurement
    report = {"hardware": hardware(choose_device("auto"))} | provenance() | {"images_per_s": {}}
    print(report["hardware"])
    for case in options.cases:
        speeds: dict[str, list[float]] = {"plain": [], "ours": []}
        for kind in [*speeds] * ROUNDS:
            with ProcessPoolExecutor(1, get_context("spawn")) as child:
                speeds[kind].append(child.submit(measure, case, kind).result())
        before, after = map(median, speeds.values())
        line = f"{case:<24}{before:>6,.0f} -> {after:,.0f} images/s: {after / before:.1f}x"
        print(line, flush=True)
        report["images_per_s"][case] = speeds
    if options.json:
        files.write(options.json, json.dumps(report, indent=1) + "\n")
    return 0


def measure(case: str, kind: str) -> float:
    """Images per second of the loop "plain" or "ours"."""
    size, device = CASES[case], choose_device("auto")
    torch.manual_seed(0)
    work = Training(case, size).work if kind == "ours" else plain(values_of(case, size), device)
    speeds, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(speeds) < 3:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        speeds.append(STEPS * size / (time.perf_counter() - start))
    return median(speeds[1:])  # the first one warms up


class Training:
    """A run's data and model, and its steps so far, on a GPU with or without CUDA graphs."""

    def __init__(self, case: str, size: int, graphs: bool = False):
        values, device = values_of(case, size), choose_device("auto")
        self.data, self.model = runs.build(values, device)
        self.train_step = runs.train_step(self.model, self.data, graphs=graphs)
        self.batches, self.window = Batches(len(self.data), size, seed=0), Window(device)
        self.done = 0

    def work(self) -> None:
        """STEPS steps as train.py takes them."""
        for step in range(self.done, self.done + STEPS):
            torch.manual_seed(mix(0, step, 0))
            self.window.add(self.train_step(self.batches[step], step))
        self.done += STEPS
        self.window.mean()  # device sync


def values_of(case: str, size: int) -> dict[str, Any]:
    """The configuration of a case with another batch size."""
    return runs.resolve(CONFIG / f"{case}.yaml", [f"train.batch_size={size}"])


def plain(values: dict[str, Any], device: torch.device) -> Callable[[], None]:
    """STEPS steps with torch's own layers, settings and loader."""
    data, size = load_dataset(**values["dataset"]), values["train"]["batch_size"]
    model = build_model(data.image_shape, values["model"], values["objective"], len(data))
    images = TensorDataset(data.batch(torch.arange(IMAGES), torch.uint8))
    options = {"shuffle": True, "drop_last": True, "num_workers": 2, "persistent_workers": True}
    batches = itertools.chain.from_iterable(itertools.repeat(DataLoader(images, size, **options)))
    step = (plain_infogan if isinstance(model, InfoGAN) else plain_vae)(model.to(device))

    def work() -> None:
        for (x,) in itertools.islice(batches, STEPS):
            step(x.to(device).float())

    return work


def plain_vae(vae: VAE) -> Callable[[Tensor], None]:
    """A step of a beta-VAE, or of FactorVAE, whose discriminator takes its own step."""
    optimizer = torch.optim.Adam([*vae.encoder.parameters(), *vae.decoder.parameters()], lr=5e-4)
    discriminator = getattr(vae.objective, "discriminator", None)
    optimizer_d = discriminator and torch.optim.Adam(discriminator.parameters(), lr=1e-4)

    def step(x: Tensor) -> None:
        mu, logvar = vae.encoder(x)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        recon = F.binary_cross_entropy_with_logits(vae.decoder(z), x, reduction="sum") / len(x)
        loss = recon + 4 * gaussian_kl(mu, logvar).sum(1).mean()
        update(optimizer, loss + 35 * discriminator(z).mean() if discriminator else loss)
        if discriminator:
            real, fake = discriminator(z.detach()), discriminator(permute_latents(z.detach()))
            update(optimizer_d, 0.5 * (F.softplus(-real) + F.softplus(fake)).mean())

    return step


def plain_infogan(gan: InfoGAN) -> Callable[[Tensor], None]:
    """A training step of D and the trunk it shares with Q, then of G; continuous codes only."""
    g, d = gan.generator, gan.discriminator
    optimizer_g = torch.optim.Adam([*g.parameters(), *d.q_head.parameters()], lr=1e-3)
    optimizer_d = torch.optim.Adam([*d.trunk.parameters(), *d.d_head.parameters()], lr=2e-4)
    steps = itertools.count()

    def q_loss(q: Tensor, codes: Tensor) -> Tensor:
        return 0.5 * gan.info_weight * (q - codes).square().sum(1).mean()

    def step(x: Tensor) -> None:
        penalise = gan.r1 > 0 and next(steps) % gan.r1_every == 0
        real = gan._to_network(x).requires_grad_(penalise)
        codes = gan.sample(len(x))
        fake = g(torch.cat([codes, gan.sample_noise(len(x))], 1))
        (real_logits, _), (fake_logits, q) = d(gan._noisy(real)), d(gan._noisy(fake.detach()))
        loss = (F.softplus(-real_logits) + F.softplus(fake_logits)).mean() + q_loss(q, codes)
        if penalise:
            (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            loss = loss + 0.5 * gan.r1 * gan.r1_every * slope.square().sum((1, 2, 3)).mean()
        update(optimizer_d, loss)
        logits, q = d(gan._noisy(fake))
        update(optimizer_g, F.softplus(-logits).mean() + q_loss(q, codes))

    return step


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


if __name__ == "__main__":
    sys.exit(main())
