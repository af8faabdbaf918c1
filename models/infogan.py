"""InfoGAN and its contrastive phase, InfoGAN-CR. Losses are in nats per image.

z (B, latent_dim) holds the codes, one column a variable: first the continuous ones in [-1, 1], then
each categorical one as its category 0 ... k - 1.
"""

import math
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from models.gan_networks import GAN_NETWORKS, pair_discriminator
from models.hyperparameters import Count, CountOrZero, NonNegative, Positive, Share, decay_rates
from models.networks import Shape
from models.vae import VAE, Terms

BETAS = 0.5, 0.999  # of every Adam, as in the code of both papers
AVERAGE_INPUTS = 1024  # samples for the batch norm of the averaged generator


class InfoGAN(nn.Module):
    """InfoGAN: Chen et al. 2016, https://arxiv.org/abs/1606.03657; with cr_weight InfoGAN-CR.

    Lin et al. 2020: https://arxiv.org/abs/1906.06034. As there, Q predicts each continuous code
    with a standard deviation of 1, and its loss is part of the steps of both D and G.

    Args:
        network: generator and discriminators.
        continuous: number of codes U(-1, 1).
        categorical: number of categories of each categorical code.
        noise: number of variables U(-1, 1) that Q does not predict.
        info_weight: weight of Q's loss in the steps of D and G.
        lr_g: learning rate of the generator's Adam.
        lr_d: learning rate of the discriminators' Adam.
        lr_decay: factor of all learning rates after a log-linear decay; 1 is no decay.
        lr_decay_steps: steps of the decay.
        instance_noise: standard deviation of the noise on all images that D sees, in its range.
        r1: gamma of the penalty gamma / 2 E |grad D(x)|^2, see https://arxiv.org/abs/1801.04406.
        r1_every: steps between penalties; each then weighs r1_every times as much.
        ema: decay of the running average of G, which draws the images; 0 is no average.
        cr_weight: weight of the contrastive loss.
        cr_start: first step of the contrastive loss.
    """

    span = (-1.0, 1.0)  # of a traversal
    information_name = "MI bound"
    autocast = VAE.autocast

    def __init__(
        self,
        image_shape: Shape,
        *,
        network: Literal[tuple(GAN_NETWORKS)] = "seed",
        continuous: CountOrZero = 5,
        categorical: tuple[Annotated[int, Field(ge=2)], ...] = (),
        noise: CountOrZero = 5,
        info_weight: NonNegative = 1.0,
        lr_g: Positive = 1e-3,
        lr_d: Positive = 2e-4,
        lr_decay: Share = 1.0,
        lr_decay_steps: Count = 1,
        instance_noise: NonNegative = 0.0,  # keeps D from winning
        r1: NonNegative = 0.0,
        r1_every: Count = 1,  # lazy regularisation: https://arxiv.org/abs/1912.04958, appendix B
        ema: Annotated[float, Field(ge=0, lt=1)] = 0.0,  # draws smoother outlines than any step
        cr_weight: NonNegative = 0.0,
        cr_start: CountOrZero = 0,
    ):
        super().__init__()
        self.latent_dim, self.q_sizes = continuous + len(categorical), [continuous, *categorical]
        if self.latent_dim == 0:
            raise ValueError("model.continuous: 0 is not allowed without model.categorical")
        self.continuous, self.categorical, self.noise = continuous, tuple(categorical), noise
        self.category_sizes = dict(enumerate(categorical, start=continuous))
        self.info_weight, self.instance_noise = info_weight, instance_noise
        self.r1, self.r1_every = r1, r1_every
        self.ema, self.cr_weight, self.cr_start = ema, cr_weight, cr_start
        self.lr_decay, self.lr_decay_steps = lr_decay, lr_decay_steps
        self.dtype = torch.float32  # of the convolutions; bfloat16 where the hardware has it

        # build the networks, and list the modules that each optimiser moves
        built = GAN_NETWORKS[network]
        self.low, self.joint = built.low, built.joint
        self.generator = built.generator(continuous + sum(categorical) + noise, image_shape)
        self.discriminator = built.discriminator(image_shape, sum(self.q_sizes))
        owned = {"g": [self.generator], "d": [self.discriminator.trunk, self.discriminator.d_head]}
        owned[built.q_owner].append(self.discriminator.q_head)
        if cr_weight > 0:
            self.pair_discriminator = pair_discriminator(image_shape, self.latent_dim)
            owned["cr"] = [self.pair_discriminator]
        for name, parameter in self.named_parameters() if built.init_std else ():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 and "parametrizations" not in name:
                nn.init.normal_(parameter, std=built.init_std)

        self.optimizers = {}
        for name, modules in owned.items():
            parameters, rate = nn.ModuleList(modules).parameters(), lr_g if name == "g" else lr_d
            self.optimizers[name] = torch.optim.Adam(parameters, rate, betas=BETAS, fused=True)
        self.averaged = AveragedModel(self.generator).requires_grad_(False) if ema > 0 else None
        self.register_buffer("fixed_noise", self.sample_noise(1, torch.Generator().manual_seed(0)))

    def train(self, mode: bool = True) -> Self:
        """eval() also measures the averaged generator's batch norm statistics on samples."""
        super().train(mode)
        if not mode and self.averaged is not None:
            generator = torch.Generator(self.fixed_noise.device).manual_seed(0)
            codes = self.sample(AVERAGE_INPUTS, generator)
            noise = self.sample_noise(AVERAGE_INPUTS, generator)
            update_bn(self._inputs(codes, noise).split(128), self.averaged)
        return self

    def train_step(self, x: Tensor, step: int) -> Terms:
        """One step of D, of the contrastive discriminator and of G.

        d_real and d_fake are accuracies of D; the mean of r1 over steps is that of |grad D|^2.
        """
        decay_rates(self.optimizers, self.lr_decay, step, self.lr_decay_steps)
        contrast = self.cr_weight > 0 and step >= self.cr_start
        penalise = self.r1 > 0 and step % self.r1_every == 0
        n, real, z = len(x), self._to_network(x), self.sample(len(x))
        inputs, cr = self._inputs(z, self.sample_noise(n)), real.new_zeros(())
        if contrast:
            pairs, shared = self._pairs(n)
            inputs = torch.cat([inputs, pairs])  # (3B, inputs): one batch, one batch statistic
        with self.autocast(x):
            fake, images = self.generator(inputs).tensor_split([n])
            terms = self._step_d(self._noisy(real), self._noisy(fake.detach()), z, penalise)
            if contrast:
                self._update("cr", self._contrast(images.detach(), shared))
                cr = self._contrast(images, shared)
            terms |= self._step_g(self._noisy(fake), z, cr)
        if self.averaged is not None:
            self._average(step)
        if self.cr_weight > 0:
            terms["cr"] = cr
        terms |= {"std_fake": _spread(fake), "std_real": _spread(real)}
        return {name: term.detach() for name, term in terms.items()}

    def _step_d(self, real: Tensor, fake: Tensor, z: Tensor, penalise: bool = False) -> Terms:
        real = real.detach().requires_grad_(penalise)
        if self.joint and not penalise:  # the penalty needs a graph of the real images alone
            logits, q = self.discriminator(torch.cat([real, fake.float()]))
            (real_logits, fake_logits), q = logits.chunk(2), q[len(real) :]
        else:
            real_logits, _ = self._discriminate(real, is_real=True)
            fake_logits, q = self._discriminate(fake, is_real=False)
        d_loss = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
        d_loss = d_loss + F.softplus(fake_logits).mean()
        q_loss, _ = self._code_losses(q, z)
        penalty = d_loss.new_zeros(())
        if penalise:
            (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            penalty = self.r1_every * slope.square().sum((1, 2, 3)).mean()
        self._update("d", d_loss + self.info_weight * q_loss.sum() + 0.5 * self.r1 * penalty)
        d_real, d_fake = (real_logits > 0).float().mean(), (fake_logits < 0).float().mean()
        terms = {"d_loss": d_loss, "d_real": d_real, "d_fake": d_fake}
        return terms | ({"r1": penalty} if self.r1 > 0 else {})

    def _step_g(self, fake: Tensor, z: Tensor, cr: Tensor) -> Terms:
        logits, q = self._discriminate(fake, is_real=False)
        g_loss = F.softplus(-logits).mean()  # non-saturating: -log D(fake)
        q_loss, bound = self._code_losses(q, z)
        q_loss = q_loss.sum()
        self._update("g", g_loss + self.info_weight * q_loss + self.cr_weight * cr)
        terms = {"g_loss": g_loss, "q_loss": q_loss, "mi": bound.sum()}
        return terms | {f"mi_{j}": nats for j, nats in enumerate(bound)}

    def _update(self, name: str, loss: Tensor) -> None:
        """One step of one optimiser: only its own parameters receive gradients and move."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
        optimizer.step()
        torch.clear_autocast_cache()  # it holds bf16 copies of the weights that have just moved

    def _discriminate(self, images: Tensor, is_real: bool) -> tuple[Tensor, Tensor]:
        """D and Q; only real images move the running statistics."""
        for module in self.discriminator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1 if is_real else 0.0
        return self.discriminator(images)

    def _contrast(self, images: Tensor, shared: Tensor) -> Tensor:
        """Cross entropy of the code that each pair of images (2n, C, H, W) shares."""
        logits = self.pair_discriminator(torch.cat(images.chunk(2), 1))
        return F.cross_entropy(logits.float(), shared)

    def _code_losses(self, q: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Means of -log Q(z | x) and of the information bound, each (latent_dim,).

        The bound is the entropy of a code less its cross entropy (InfoGAN, equation 4); that of a
        continuous one, of entropy ln 2, is under the Gaussian whose variance is Q's mean error.
        """
        mean, *logits = q.split(self.q_sizes, 1)
        error = (z[:, : self.continuous] - mean).square()  # (B, continuous)
        losses = list((0.5 * (error + math.log(2 * math.pi))).mean(0))
        log_error = error.detach().mean(0).log()
        bounds = list(math.log(2) - 0.5 * (log_error + math.log(2 * math.pi * math.e)))
        categories = z[:, self.continuous :].long().unbind(1)
        for row, category in zip(logits, categories, strict=True):
            losses.append(F.cross_entropy(row, category))
            bounds.append(math.log(row.shape[1]) - losses[-1].detach())
        return torch.stack(losses), torch.stack(bounds)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """AveragedModel.update_parameters without the read of a counter, which is a device sync."""
        weights = [list(g.parameters()) for g in (self.averaged.module, self.generator)]
        torch._foreach_lerp_(*weights, 1 - self.ema if step > 0 else 1.0)
        for own, new in zip(self.averaged.module.buffers(), self.generator.buffers(), strict=True):
            own.copy_(new)
        self.averaged.n_averaged += 1

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Codes (n, latent_dim) from the prior, on the generator's device, else the model's."""
        z = self._uniform(n, self.continuous, generator)
        options = {"generator": generator, "device": z.device}
        categories = [torch.randint(k, (n, 1), **options) for k in self.categorical]
        return torch.cat([z, *categories], 1)

    def sample_noise(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self._uniform(n, self.noise, generator)

    def _uniform(self, n: int, width: int, generator: torch.Generator | None) -> Tensor:
        device = generator.device if generator else self.fixed_noise.device
        return torch.rand(n, width, generator=generator, device=device) * 2 - 1

    def _pairs(self, n: int) -> tuple[Tensor, Tensor]:
        """Inputs (2n, inputs) of n pairs that share the noise and one code (n,)."""
        first, second = self.sample(n), self.sample(n)
        shared = torch.randint(self.latent_dim, (n,), device=first.device)
        same = shared[:, None] == torch.arange(self.latent_dim, device=first.device)
        codes = torch.cat([first, torch.where(same, first, second)])
        return self._inputs(codes, self.sample_noise(n).repeat(2, 1)), shared

    def _inputs(self, z: Tensor, noise: Tensor) -> Tensor:
        """Codes (B, latent_dim) and noise (B, noise) -> inputs of G, categories one-hot."""
        columns = [z[:, : self.continuous]]
        for j, k in enumerate(self.categorical, start=self.continuous):
            categories = torch.arange(k, device=z.device)
            columns.append((z[:, j : j + 1].round().clamp(0, k - 1) == categories).to(z.dtype))
        return torch.cat([*columns, noise], 1)

    def _to_network(self, x: Tensor) -> Tensor:
        """From [0, 1] to the range of the network, float32."""
        return self.low + (1 - self.low) * x.float()

    def _noisy(self, images: Tensor) -> Tensor:
        std = self.instance_noise
        return images + std * torch.randn_like(images) if std else images

    def _draw(self, z: Tensor, noise: Tensor) -> Tensor:
        """Images in the range of the network, by the averaged generator if there is one."""
        generator = self.generator if self.averaged is None else self.averaged
        return generator(self._inputs(z, noise))

    def encode(self, x: Tensor) -> Tensor:
        """Q's means and most likely categories: (B, latent_dim)."""
        with self.autocast(x):
            _, q = self.discriminator(self._to_network(x))
        mean, *logits = q.split(self.q_sizes, 1)
        return torch.cat([mean, *(row.argmax(1, keepdim=True).float() for row in logits)], 1)

    def decode(self, z: Tensor) -> Tensor:
        with self.autocast(z):
            images = self._draw(z, self.fixed_noise.expand(len(z), -1)).float()
        return (images - self.low) / (1 - self.low)

    def information(self, x: Tensor) -> Tensor:
        """Information bound of each code on len(x) samples of the model: (latent_dim,) nats.

        Real images have no true codes; x seeds the samples, which makes them repeatable.
        """
        generator = torch.Generator(x.device).manual_seed(int(x.sum()))  # device sync
        z = self.sample(len(x), generator)
        with self.autocast(x):
            _, q = self.discriminator(self._draw(z, self.sample_noise(len(x), generator)))
        return self._code_losses(q, z)[1]

    def warnings(self, terms: dict[str, float]) -> list[str]:
        texts = []
        low, high = sorted((terms["d_real"], terms["d_fake"]))
        fake, real, g_loss = terms["std_fake"], terms["std_real"], terms["g_loss"]
        if fake < 0.5 * real:
            texts.append(f"mode collapse: samples vary by {fake:.3f} a pixel, images by {real:.3f}")
        if low > 0.99 and g_loss > 5:
            texts.append(f"the discriminator has won: g_loss is {g_loss:.1f} nats")
        if low < 0.02 and high > 0.98:
            texts.append("dead discriminator: it gives real and fake images the same answer")
        return texts


def _spread(images: Tensor) -> Tensor:
    """Standard deviation over the batch, mean over pixels (Tensor.std is ten times as slow)."""
    images = images.detach().float()
    return (images.square().mean(0) - images.mean(0).square()).clamp(min=0).sqrt().mean()
