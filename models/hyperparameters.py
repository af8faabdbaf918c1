"""Types of hyperparameters, and schedules that depend on the step alone."""

import math
from typing import Annotated

from pydantic import Field
from torch.optim import Optimizer

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


def log_linear(start: float, end: float, step: int, steps: int) -> float:
    """A line in the logarithm from `start` to `end` over `steps`, constant from there on."""
    progress = min(step / steps, 1.0)
    return math.exp((1 - progress) * math.log(start) + progress * math.log(end))


def decay_rates(optimizers: dict[str, Optimizer], end: float, step: int, steps: int) -> None:
    """Set every learning rate to its first value times a factor, log-linear from 1 to `end`."""
    factor = log_linear(1.0, end, step, steps)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor
