"""InfoGAN (Chen et al. 2016) and its contrastive phase, InfoGAN-CR (Lin et al. 2020).

Losses are nats per image. z (B, latent_dim) holds the codes, one column a variable: the continuous
ones in [-1, 1] first, then each categorical one as its category 0 ... k - 1.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from models.checks import (
    AtLeastOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
)
from models.fast import input_gradients_only
from models.gan_networks import GAN_NETWORKS
from models.schedules import log_linear, need_decay_steps, set_rates

Categories = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(strict=False)]  # a YAML list
Fraction = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Fraction, Fraction], Field(strict=False)]

AVERAGE_INPUTS = 1024  # samples for the batch norm of the averaged G
MIN_LOG_STD = math.log(0.01)  # floor of a learned Q: 1 % of a code's half range is below a pixel


def uniform_information(error: Tensor) -> Tensor:
    """Information bound of a code U(-1, 1) whose Q has this mean squared error, in nats.

    ln 2 - ln(2 pi e error) / 2: the code's entropy less its cross entropy under the Gaussian of the
    best fixed variance, which is the error (InfoGAN, eq. 4). Any shape, returned as it came.
    """
    return math.log(2) - 0.5 * (error.log() + math.log(2 * math.pi * math.e))


class InfoGAN(nn.Module):
    """InfoGAN on 64x64 images, with one of GAN_NETWORKS.

    continuous: number of codes U(-1, 1). categorical: the number of categories of each categorical
    code. noise: number of variables U(-1, 1) that Q does not see. q_std: Q's standard deviation,
    "fixed" (1, as in InfoGAN-CR) or "learned". info_weight: weight of Q's loss beside D's and G's.
    lr_g, lr_d, betas: Adam's; both rates fall log-linearly to lr_decay of themselves over
    lr_decay_steps. g_steps: G updates a step, all on the same codes. instance_noise:
    standard deviation of the noise on D's inputs, in the units of its images, falling linearly to 0
    over instance_noise_steps (0: constant). label_smoothing: D's target for real images is 1 less
    this. r1: gamma of the penalty gamma / 2 E |grad D(x)|^2 on real images (Mescheder et al. 2018,
    eq. 9), taken every r1_every steps and then that many times as heavy (Karras et al. 2020). ema:
    decay of a running average of G's weights, which is what decode uses (0: none); the average over
    its last steps draws smoother outlines than any of them. eval() measures its batch norm's
    statistics on AVERAGE_INPUTS samples: with those of its steps it drew blank images while G moved
    fast. cr_weight: weight of the contrastive loss from step cr_start on.

    Q's loss is part of D's step, where it trains the shared trunk, and of G's step. Each step moves
    what its own optimiser holds and nothing else: "d" D and the trunk, "g" the generator; Q's own
    layers go with G in the network "seed" and with D in the others.

    Batch norm: call eval() before encode, decode and information, so that an image depends on its
    own code alone. G's running statistics are those of its samples; D's are those of real images
    only, as D sees them: without instance noise what encode is given, with it noisier. In the
    published run of network "seed" (noise .45) one code's bound then reads .06 nats for .26.

    Raises ValueError for images that are not 64x64, where there is no code at all or one alone to
    contrast, and for an lr_decay without its steps.
    """

    span = (-2.0, 2.0)  # of a traversal
    trained_span = (-1.0, 1.0)
    information_name = "MI bound"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        network: Literal["seed", "sn", "small", "broadcast"] = "seed",
        continuous: NonNegativeInt = 5,
        categorical: Categories = (),
        noise: NonNegativeInt = 5,
        q_std: Literal["fixed", "learned"] = "fixed",
        info_weight: NonNegativeFloat = 1.0,
        lr_g: PositiveFloat = 1e-3,
        lr_d: PositiveFloat = 2e-4,
        betas: Betas = (0.5, 0.999),
        lr_decay: PositiveFraction = 1.0,
        lr_decay_steps: AtLeastOne = 1,
        g_steps: AtLeastOne = 1,
        instance_noise: NonNegativeFloat = 0.0,
        instance_noise_steps: NonNegativeInt = 0,
        label_smoothing: Fraction = 0.0,
        r1: NonNegativeFloat = 0.0,
        r1_every: AtLeastOne = 1,
        ema: Fraction = 0.0,
        cr_weight: NonNegativeFloat = 0.0,
        cr_start: NonNegativeInt = 0,
    ):
        super().__init__()
        if tuple(image_shape[1:]) != (64, 64):
            raise ValueError(f"the networks take images of 64x64 pixels, not {image_shape[1:]}")
        self.latent_dim = continuous + len(categorical)
        if self.latent_dim == 0:
            raise ValueError("model.continuous: 0 is not allowed without model.categorical")
        if cr_weight > 0 and self.latent_dim == 1:
            raise ValueError(
                f"model.cr_weight: {cr_weight} is not allowed with one code: its loss tells which "
                "of several two images share; allowed: 0"
            )
        need_decay_steps(lr_decay, lr_decay_steps)
        self.continuous, self.categorical, self.noise = continuous, tuple(categorical), noise
        self.learned_std = q_std == "learned"
        self.q_sizes = [continuous, continuous * self.learned_std, *categorical]
        self.info_weight, self.g_steps, self.label_smoothing = info_weight, g_steps, label_smoothing
        self.instance_noise, self.instance_noise_steps = instance_noise, instance_noise_steps
        self.r1, self.r1_every = r1, r1_every
        self.cr_weight, self.cr_start = cr_weight, cr_start
        self.dtype = torch.float32  # of the convolutions: bfloat16 where the hardware has it

        built = GAN_NETWORKS[network]
        self.low, self.joint = built.low, built.joint
        channels, inputs = image_shape[0], continuous + sum(categorical) + noise
        self.generator = built.generator(inputs, channels)
        self.discriminator = built.discriminator(channels, sum(self.q_sizes))
        owned = {"g": [self.generator], "d": [self.discriminator.trunk, self.discriminator.d_head]}
        owned[built.q_owner].append(self.discriminator.q_head)
        if cr_weight > 0:
            self.pair_discriminator = built.pair_discriminator(channels, self.latent_dim)
            owned["cr"] = [self.pair_discriminator]
        for name, parameter in self.named_parameters() if built.init_std else ():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 and "parametrizations" not in name:
                nn.init.normal_(parameter, std=built.init_std)
        self.rates = {name: lr_g if name == "g" else lr_d for name in owned}
        self.lr_decay, self.lr_decay_steps = lr_decay, lr_decay_steps
        self.optimizers = {
            name: torch.optim.Adam(
                nn.ModuleList(modules).parameters(), lr=self.rates[name], betas=betas, fused=True
            )
            for name, modules in owned.items()
        }
        self.averaged = None
        if ema > 0:
            average = get_ema_multi_avg_fn(ema)
            self.averaged = AveragedModel(self.generator, multi_avg_fn=average)
            self.averaged.requires_grad_(False)
        entropy = [math.log(2)] * continuous + [math.log(k) for k in categorical]
        self.register_buffer("entropy", torch.tensor(entropy), persistent=False)
        self.register_buffer("fixed_noise", self.sample_noise(1, torch.Generator().manual_seed(0)))

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's; before it draws, the averaged G gets statistics of its own samples."""
        super().train(mode)
        if not mode and self.averaged is not None:
            generator = torch.Generator(self.entropy.device).manual_seed(0)
            codes = self.sample(AVERAGE_INPUTS, generator)
            noise = self.sample_noise(AVERAGE_INPUTS, generator)
            update_bn(self._inputs(codes, noise).split(128), self.averaged)
        return self

    def autocast(self, x: Tensor) -> torch.autocast:
        """The context in which the convolutions run in `self.dtype`."""
        return torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def compile(self, **settings: Any) -> None:
        """Compile the networks in place (torch's own would compile a forward that is not there).

        All but D under r1, whose second derivative compiled code does not have, and the averaged G,
        which only draws.
        """
        left = [self.averaged] + [self.discriminator] * (self.r1 > 0)
        for network in self.children():
            if all(network is not other for other in left):
                network.compile(**settings)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of the codes: (n, latent_dim) on the generator's device, else the model's."""
        device = generator.device if generator else self.entropy.device
        columns = [torch.rand(n, self.continuous, generator=generator, device=device) * 2 - 1]
        for k in self.categorical:
            categories = torch.randint(k, (n, 1), generator=generator, device=device)
            columns.append(categories.float())
        return torch.cat(columns, 1)

    def sample_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of the noise U(-1, 1): (n, noise) on the generator's device, else the model's."""
        device = generator.device if generator else self.entropy.device
        return torch.rand(n, self.noise, generator=generator, device=device) * 2 - 1

    def _inputs(self, z: Tensor, noise: Tensor) -> Tensor:
        """Codes (B, latent_dim) and noise (B, noise) -> what G takes, categories one-hot."""
        columns = [z[:, : self.continuous]]
        for j, k in enumerate(self.categorical, start=self.continuous):
            categories = torch.arange(k, device=z.device)
            columns.append((z[:, j : j + 1].round().clamp(0, k - 1) == categories).to(z.dtype))
        return torch.cat([*columns, noise], 1)

    def _drawing(self) -> nn.Module:
        """The generator of a trained model."""
        return self.generator if self.averaged is None else self.averaged

    def _pairs(self, n: int) -> tuple[Tensor, Tensor]:
        """Inputs of n pairs that share one code and the noise -> (2n, inputs), shared code (n,)."""
        first, second = self.sample(n), self.sample(n)
        shared = torch.randint(self.latent_dim, (n,), device=first.device)
        same = shared[:, None] == torch.arange(self.latent_dim, device=first.device)
        codes = torch.cat([first, torch.where(same, first, second)])
        return self._inputs(codes, self.sample_noise(n).repeat(2, 1)), shared

    def _to_network(self, x: Tensor) -> Tensor:
        """Images in [0, 1] -> float32 images in the range of the network."""
        return self.low + (1 - self.low) * x.float()

    def _code_losses(self, q: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Q's output for images of codes z -> mean -log Q(z | x) and bound, each (latent_dim,)."""
        mean, log_std, *logits = q.split(self.q_sizes, 1)
        error = (z[:, : self.continuous] - mean).square()  # (B, continuous)
        log_std = log_std.clamp(min=MIN_LOG_STD) if self.learned_std else torch.zeros_like(error)
        gaussian = 0.5 * (error * (-2 * log_std).exp() + math.log(2 * math.pi)) + log_std
        categories = z[:, self.continuous :].long().unbind(1)
        entropies = [F.cross_entropy(*pair) for pair in zip(logits, categories, strict=True)]
        loss = torch.stack([*gaussian.mean(0), *entropies])
        bound = self.entropy - loss.detach()
        if not self.learned_std:  # a standard deviation of 1 is loose: bound with the fitted one
            bound[: self.continuous] = uniform_information(error.detach().mean(0))
        return loss, bound

    def _discriminate(self, images: Tensor, real: bool) -> tuple[Tensor, Tensor]:
        """D and Q; only real images move the running statistics."""
        for module in self.discriminator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1 if real else 0.0
        return self.discriminator(images)

    def _contrast(self, images: Tensor, shared: Tensor) -> Tensor:
        """Images (2n, C, H, W) of n pairs -> cross entropy of the code that each pair shares."""
        logits = self.pair_discriminator(torch.cat(images.chunk(2), 1))
        return F.cross_entropy(logits.float(), shared)

    @contextmanager
    def _frozen_but(self, name: str) -> Iterator[None]:
        """Within it only this optimiser's parameters ask for gradients: no others are computed."""
        others = [
            parameter
            for other, optimizer in self.optimizers.items()
            for group in optimizer.param_groups
            for parameter in group["params"]
            if other != name
        ]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _update(self, name: str, loss: Tensor) -> None:
        """One step of one optimiser: only its own parameters receive gradients and move."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
        optimizer.step()
        torch.clear_autocast_cache()  # it holds bf16 copies of the weights that have just moved

    def _step_d(
        self, real: Tensor, fake: Tensor, z: Tensor, penalise: bool = False
    ) -> dict[str, Tensor]:
        real = real.detach().requires_grad_(penalise)
        if self.joint and not penalise:  # the penalty wants a graph of the real images alone
            logits, q = self.discriminator(torch.cat([real, fake.float()]))
            (real_logits, fake_logits), q = logits.chunk(2), q[len(real) :]
        else:
            # A view: torch's counter of FLOPs, which hooks modules, takes no leaf in autograd.grad.
            real_logits, _ = self._discriminate(real.view_as(real), real=True)
            fake_logits, q = self._discriminate(fake, real=False)
        target = torch.full_like(real_logits, 1 - self.label_smoothing)
        d_loss = F.binary_cross_entropy_with_logits(real_logits, target)
        d_loss = d_loss + F.softplus(fake_logits).mean()
        q_loss, _ = self._code_losses(q, z)
        penalty = d_loss.new_zeros(())
        if penalise:
            penalty = self.r1_every * _squared_slope(real_logits, real)
        loss = d_loss + self.info_weight * q_loss.sum() + 0.5 * self.r1 * penalty
        self._update("d", loss)
        d_real, d_fake = (real_logits > 0).float().mean(), (fake_logits < 0).float().mean()
        slope = {"r1": penalty} if self.r1 > 0 else {}
        return {"d_loss": d_loss, "d_real": d_real, "d_fake": d_fake} | slope

    def _step_g(self, fake: Tensor, z: Tensor, cr: Tensor) -> dict[str, Tensor]:
        logits, q = self._discriminate(fake, real=False)
        g_loss = F.softplus(-logits).mean()  # non-saturating: -log D(fake)
        q_loss, bound = self._code_losses(q, z)
        q_loss = q_loss.sum()
        self._update("g", g_loss + self.info_weight * q_loss + self.cr_weight * cr)
        by_code = {f"mi_{j}": nats for j, nats in enumerate(bound)}
        return {"g_loss": g_loss, "q_loss": q_loss, "mi": bound.sum()} | by_code

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """What AveragedModel.update_parameters does; that reads a counter, waiting for a GPU."""
        weights = [list(g.parameters()) for g in (self.averaged.module, self.generator)]
        if step == 0:
            torch._foreach_copy_(*weights)
        else:
            self.averaged.multi_avg_fn(*weights, None)
        for own, new in zip(self.averaged.module.buffers(), self.generator.buffers(), strict=True):
            own.copy_(new)
        self.averaged.n_averaged += 1

    def train_step(self, x: Tensor, step: int) -> dict[str, Tensor]:
        """One update of D (and of the contrastive discriminator), then g_steps of G.

        x: (B, C, 64, 64) in [0, 1]. Returns detached 0-d tensors: in nats d_loss (real + fake),
        g_loss (non-saturating), q_loss (-log Q, sum over codes), mi (the information bound, sum
        over codes), mi_0 ..., and with a cr_weight cr (0 before cr_start, chance is ln latent_dim);
        D's accuracies d_real and d_fake; with an r1 the term r1, |grad D|^2 of real images, right
        in the mean (r1_every times that where it is taken, else 0); std_fake and std_real, the
        standard deviation over the batch of samples and of data, mean over pixels, in the units of
        the network's images.
        """
        decay = log_linear(1.0, self.lr_decay, step, self.lr_decay_steps)
        set_rates(self.optimizers, self.rates, decay)
        n, real, z = len(x), self._to_network(x), self.sample(len(x))
        inputs = self._inputs(z, self.sample_noise(n))
        contrast, cr = self.cr_weight > 0 and step >= self.cr_start, real.new_zeros(())
        if contrast:
            pairs, shared = self._pairs(n)
            inputs = torch.cat([inputs, pairs])  # (3B, inputs): one batch, one batch statistic
        std = self.instance_noise
        if self.instance_noise_steps:
            std *= max(0.0, 1 - step / self.instance_noise_steps)

        def noisy(images: Tensor) -> Tensor:
            return images + std * torch.randn_like(images) if std else images

        with self.autocast(x):
            images = self.generator(inputs)
            penalise = self.r1 > 0 and step % self.r1_every == 0
            terms = self._step_d(noisy(real), noisy(images[:n].detach()), z, penalise)
            if contrast:
                self._update("cr", self._contrast(images[n:].detach(), shared))
            for repeat in range(self.g_steps):
                if repeat:  # G has moved; the first time D's fakes, from the same G, serve again
                    images = self.generator(inputs)
                with self._frozen_but("g"):
                    if contrast:
                        cr = self._contrast(images[n:], shared)
                    terms |= self._step_g(noisy(images[:n]), z, cr)
        if self.averaged is not None:
            self._average(step)
        if self.cr_weight > 0:
            terms["cr"] = cr
        terms |= {"std_fake": _spread(images[:n]), "std_real": _spread(real)}
        return {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """x (B, C, 64, 64) in [0, 1] -> Q's means, categories by argmax: (B, latent_dim), fp32."""
        assert not self.training, "call eval() first: batch norm would move"
        with self.autocast(x):
            _, q = self.discriminator(self._to_network(x))
        mean, _, *logits = q.split(self.q_sizes, 1)
        return torch.cat([mean, *(row.argmax(1, keepdim=True).float() for row in logits)], 1)

    @torch.no_grad()
    def decode(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """z (B, latent_dim) -> images (B, C, 64, 64) in [0, 1], float32.

        noise: (B, noise) or (1, noise); None is the model's own fixed vector, the same for every
        image. A categorical column means its nearest category, so a traversal may cross any span.
        """
        assert not self.training, "call eval() first: batch norm would move"
        noise = self.fixed_noise if noise is None else noise
        with self.autocast(z):
            images = self._drawing()(self._inputs(z, noise.expand(len(z), -1))).float()
        return (images - self.low) / (1 - self.low)

    @torch.no_grad()
    def information(self, x: Tensor) -> Tensor:
        """Information bound of every code on as many samples as x has images: (latent_dim,) nats.

        The samples are the model's own (real images have no true codes), drawn as a function of x:
        repeatable, and a mean over several batches gains from each.
        """
        assert not self.training, "call eval() first: batch norm would move"
        generator = torch.Generator(x.device).manual_seed(int(x.sum()))  # device sync
        z = self.sample(len(x), generator)
        with self.autocast(x):
            images = self._drawing()(self._inputs(z, self.sample_noise(len(x), generator)))
            _, q = self.discriminator(images)
        return self._code_losses(q, z)[1]

    def warnings(self, terms: dict[str, float]) -> list[str]:
        """What is wrong with a training, in plain words, from the means of its logged terms."""
        found = []
        low, high = sorted((terms["d_real"], terms["d_fake"]))
        if terms["std_fake"] < 0.5 * terms["std_real"]:
            found.append(
                f"mode collapse: samples vary by {terms['std_fake']:.3f} a pixel, "
                f"the data by {terms['std_real']:.3f}"
            )
        if low > 0.99 and terms["g_loss"] > 5:
            found.append(
                f"the discriminator has won: it tells {low:.1%} of the images apart and "
                f"g_loss is {terms['g_loss']:.1f} nats"
            )
        if low < 0.02 and high > 0.98:
            found.append("dead discriminator: it gives real and fake images the same answer")
        return found


def _squared_slope(logits: Tensor, x: Tensor) -> Tensor:
    """Mean over images x (B, C, H, W) of |d logits / d x|^2, differentiable itself."""
    with input_gradients_only():
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


def _spread(images: Tensor) -> Tensor:
    """Standard deviation over the batch, mean over pixels (Tensor.std is ten times as slow)."""
    images = images.detach().float()
    return (images.square().mean(0) - images.mean(0).square()).clamp(min=0).sqrt().mean()
