"""Which images a step sees: a function of (seed, step, rank), so there is no state to save."""

from functools import lru_cache

import torch
from torch import Tensor


class Batches:
    """The images of any step: each of n images once per epoch, in an order drawn for each epoch.

    Position p = step * batch_size + i of the endless stream is image order(seed, p // n)[p % n].
    Rank r of w takes every w-th position from the r-th on.

    Args:
        kept: the rows (n,) of these images in a larger data set.
        cumulative: distribution function (n,) float64 to draw images from, with replacement.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        kept: Tensor | None = None,
        cumulative: Tensor | None = None,
    ):
        # batch norm and estimates of q(z) need two images
        if world_size > 1 and (batch_size % world_size or batch_size < 2 * world_size):
            parts = f"{world_size} processes into equal parts of 2 or more"
            raise ValueError(f"train.batch_size: {batch_size} is not divisible by {parts}")
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.kept, self.cumulative = kept, cumulative

    def __getitem__(self, step: int) -> Tensor:
        """Return the index of the images that this rank sees at `step` (from 0): (B / w,) int64."""
        if self.cumulative is None:
            index = self._ordered(step)
        else:
            generator = torch.Generator().manual_seed(mix(self.seed, step))
            uniform = torch.rand(self.batch_size, generator=generator, dtype=torch.float64)
            index = torch.searchsorted(self.cumulative, uniform, right=True)
            index = index[self.rank :: self.world_size]
        return index if self.kept is None else self.kept[index]

    def _ordered(self, step: int) -> Tensor:
        start = step * self.batch_size
        position = torch.arange(start + self.rank, start + self.batch_size, self.world_size)
        epochs = position // self.n
        index = torch.empty_like(position)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            index[here] = _order(self.n, self.seed, epoch)[position[here] % self.n].long()
        return index


@lru_cache(maxsize=2)  # a batch may need the orders of two epochs
def _order(n: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    return torch.randperm(n, generator=generator).int()  # half the memory of int64


def mix(*numbers: int) -> int:
    """Return one 63-bit seed from several integers (splitmix64), well spread for small inputs."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
