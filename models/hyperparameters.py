"""Types of hyperparameters, and schedules, which depend on the step alone."""

import math
from typing import Annotated

from pydantic import Field
from torch.optim import Optimizer

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


def linear(start: float, end: float, step: int, steps: int) -> float:
    """The value at a step of a line from start to end over `steps`; then end."""
    return start + (end - start) * min(step / steps, 1.0)


def log_linear(start: float, end: float, step: int, steps: int) -> float:
    """The value at a step of a line in the logarithm from start to end over `steps`; then end."""
    progress = min(step / steps, 1.0)
    return math.exp((1 - progress) * math.log(start) + progress * math.log(end))


def check_decay(lr_decay: float, lr_decay_steps: int) -> None:
    """Refuse a decay without its steps, which would be over after the first one."""
    if lr_decay < 1 and lr_decay_steps == 1:
        raise ValueError(f"model.lr_decay: {lr_decay} needs model.lr_decay_steps of 2 or more")


def decay_rates(optimizers: dict[str, Optimizer], end: float, step: int, steps: int) -> None:
    """Multiply the first learning rate of every optimiser by a factor from 1 to `end`."""
    factor = log_linear(1.0, end, step, steps)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor
