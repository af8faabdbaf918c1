"""A categorical latent beside the Gaussian ones; the decoder takes it as a one-hot vector.

Two ways to train it: the assignment of CascadeVAE (Jeong & Song 2019,
https://arxiv.org/abs/1905.09432), and the Gumbel softmax with a capacity of JointVAE (Dupont 2018,
https://arxiv.org/abs/1804.00104).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

TEMPERATURE = 0.67  # of the Gumbel softmax: JointVAE's code
GAMMA = 30.0  # weight of the distance between KL and capacity: JointVAE's code


@torch.no_grad()
def zero_category(decoder: nn.Module, categories: int) -> None:
    """Set the weights of the one-hot vector to 0, so that untrained categories draw the same."""
    first = next(m for m in decoder.modules() if isinstance(m, nn.Linear))
    first.weight[:, -categories:] = 0


@torch.no_grad()
def category_nll(decoder: nn.Module, x: Tensor, z: Tensor, categories: int) -> Tensor:
    """-log p(x | z, c) of each image and category, nats: (B, categories)."""
    columns = []
    for one_hot in torch.eye(categories, device=z.device):
        logits = decoder(torch.cat([z, one_hot.expand(len(z), -1)], 1)).float()
        nll = F.binary_cross_entropy_with_logits(logits, x.float(), reduction="none")
        columns.append(nll.flatten(1).sum(1))
    return torch.stack(columns, 1)


def assign(nll: Tensor, crowding: float) -> Tensor:
    """One-hot vectors (B, K) of the categories with the least sum of NLL (B, K) and crowding cost.

    The image that joins n others in a category costs n crowding, as in CascadeVAE. So a category
    has B places of rising cost, and the least-cost matching of images to places is exact.
    """
    batch, categories = nll.shape
    costs = nll.nan_to_num().double().cpu().numpy()  # device sync
    costs = costs[:, :, None] + crowding * np.arange(batch)  # (B, K, B)
    _, places = linear_sum_assignment(costs.reshape(batch, -1))
    return F.one_hot(torch.from_numpy(places // batch), categories).to(nll)


def category_kl(q: Tensor) -> Tensor:
    """Mean KL of q(c | x), (B, K), to the uniform prior, nats."""
    return math.log(q.shape[1]) - torch.special.entr(q).sum(1).mean()


def category_information(q: Tensor) -> Tensor:
    """Mutual information of category and image in a batch of q(c | x), (B, K), nats."""
    return torch.special.entr(q.mean(0)).sum() - torch.special.entr(q).sum(1).mean()


def capacity_penalty(kl: Tensor, categories: int, progress: float) -> Tensor:
    """GAMMA |KL - C| (JointVAE, equation 7); C rises to log(categories) as progress rises to 1."""
    return GAMMA * (kl - math.log(categories) * min(max(progress, 0.0), 1.0)).abs()
