"""A categorical latent beside the Gaussian ones; the decoder takes it as a one-hot vector.

Two ways to train it: the assignment of CascadeVAE (Jeong & Song 2019,
https://arxiv.org/abs/1905.09432), and the Gumbel softmax with a capacity of JointVAE (Dupont 2018,
https://arxiv.org/abs/1804.00104).
"""

import math

import torch
from torch import Tensor

TEMPERATURE = 0.67  # of the Gumbel softmax: JointVAE's code
GAMMA = 30.0  # weight of the distance between KL and capacity: JointVAE's code


def assign(nll: Tensor, crowding: float) -> Tensor:
    """One-hot vectors (B, K) of a category of low NLL (B, K) and low crowding cost for each image.

    An image that joins n others in a category costs n crowding. CascadeVAE finds the least sum by
    min-cost flow; one image after the other comes close and does not leave the device.
    """
    columns, counts = torch.arange(nll.shape[1], device=nll.device), nll.new_zeros(nll.shape[1])
    rows = []
    for row in nll.unbind():
        rows.append(((row + crowding * counts).argmin() == columns).to(nll))
        counts = counts + rows[-1]
    return torch.stack(rows)


def category_kl(q: Tensor) -> Tensor:
    """Mean KL of q(c | x), (B, K), to the uniform prior, nats."""
    return math.log(q.shape[1]) - torch.special.entr(q).sum(1).mean()


def category_information(q: Tensor) -> Tensor:
    """Mutual information of category and image in a batch of q(c | x), (B, K), nats."""
    return torch.special.entr(q.mean(0)).sum() - torch.special.entr(q).sum(1).mean()


def capacity_penalty(kl: Tensor, capacity: float | Tensor) -> Tensor:
    """GAMMA |KL - C|: JointVAE, equation 7."""
    return GAMMA * (kl - capacity).abs()


def category_capacity(categories: int, first: int, steps: int, step: int) -> float:
    """C, which rises linearly from 0 at a first step to log(categories), nats."""
    return math.log(categories) * min(max((step - first) / steps, 0.0), 1.0)
