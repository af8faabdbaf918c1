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


def need_decay_steps(lr_decay: float, lr_decay_steps: int) -> None:
    """ValueError for a decay whose steps were forgotten: it would be over after the first one."""
    if lr_decay < 1 and lr_decay_steps == 1:
        raise ValueError(
            f"model.lr_decay: {lr_decay} is not allowed without model.lr_decay_steps of 2 or more"
        )


def set_rates(
    optimizers: Mapping[str, Optimizer], rates: Mapping[str, float], factor: float
) -> None:
    """Give each optimiser the learning rate of its name, times factor."""
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group["lr"] = rates[name] * factor
