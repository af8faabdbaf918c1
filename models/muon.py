"""Muon, an optimiser of matrices: every step is the nearest orthogonal matrix to the momentum.

K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the polynomial, from the paper
ITERATIONS = 5
SMALLEST_SIDE = 32  # of a matrix; smaller ones are the first and last layers, which are Adam's
LARGE = 40_000  # elements; above it, iterations in bfloat16 take a fifth of the time


class Muon(Optimizer):
    """Steps of the same size in every direction of a matrix.

    A kernel counts as a matrix whose rows are its first dimension.

    Args:
        lr: learning rate; that of a matrix with more rows than columns is larger.
        momentum: of Nesterov's kind.
    """

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                slope = weight.grad + group["momentum"] * momentum
                update = orthogonal(slope.flatten(1)).view_as(slope)
                rows, columns = weight.flatten(1).shape
                rate = -group["lr"] * max(1.0, rows / columns) ** 0.5
                if isinstance(rate, Tensor):  # in a CUDA graph
                    weight.addcmul_(update, rate)
                else:
                    weight.add_(update, alpha=rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T, by Newton-Schulz iterations; singular values 0.7 to 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16() if matrix.numel() > LARGE else matrix.float()
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(ITERATIONS):
        product = wide @ wide.T
        polynomial = torch.addmm(product, product, product, beta=b, alpha=c)
        wide = torch.addmm(wide, polynomial, wide, beta=a)
    return (wide if x.shape[0] <= x.shape[1] else wide.T).to(matrix.dtype)


def is_hidden(weight: Tensor) -> bool:
    """Whether a weight is a matrix or kernel of a layer between the first and the last one."""
    return weight.ndim > 1 and min(weight.flatten(1).shape) >= SMALLEST_SIDE
