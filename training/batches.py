"""Which images a step sees: arithmetic on (seed, step, rank), nothing to store or restore."""

import torch
from torch import Tensor


class Batches:
    """Index of the images of any step: every image once an epoch, in an order drawn per epoch.

    Position p = step * batch_size + i of the endless stream is image order(seed, p // n)[p % n]; a
    batch may straddle two epochs. Rank r of w takes every w-th position from the r-th on.
    """

    def __init__(self, n: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if batch_size % world_size:
            raise ValueError(
                f"train.batch_size: {batch_size} is not divisible by {world_size} processes"
            )
        if world_size > 1 and batch_size < 2 * world_size:  # batch norm and estimates of q(z)
            raise ValueError(
                f"train.batch_size: {batch_size} is not allowed with {world_size} processes; "
                "allowed: 2 images a process or more"
            )
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, step: int) -> Tensor:
        """Rows of the data set that this rank sees at `step` (from 0): (B / w,) int64."""
        start = step * self.batch_size
        position = torch.arange(start + self.rank, start + self.batch_size, self.world_size)
        epochs = position // self.n
        index = torch.empty_like(position)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            index[here] = self._order(epoch)[position[here] % self.n].long()
        return index

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            order = torch.randperm(self.n, generator=generator).int()  # half the memory of int64
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]


def mix(*numbers: int) -> int:
    """One 63-bit seed from several integers (splitmix64), well spread for small inputs."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
