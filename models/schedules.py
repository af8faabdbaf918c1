"""Schedules: functions of the step alone, so that a resumed run needs no state of theirs."""

import math
from collections.abc import Mapping

from torch.optim import Optimizer


def linear(start: float, end: float, step: int, steps: int) -> float:
    """From start to end, evenly, over steps; then end."""
    return start + (end - start) * min(step / steps, 1.0)


def log_linear(start: float, end: float, step: int, steps: int) -> float:
    """From start to end (both > 0), evenly in the logarithm, over steps; then end."""
    progress = min(step / steps, 1.0)
    return math.exp((1 - progress) * math.log(start) + progress * math.log(end))


def set_rates(
    optimizers: Mapping[str, Optimizer], rates: Mapping[str, float], factor: float
) -> None:
    """Give each optimiser the learning rate of its name, times factor."""
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = rates[name] * factor
