"""Types of hyperparameters, and schedules that depend on the step alone."""

import math
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, WithJsonSchema
from torch.optim import Optimizer

from models.graphs import Step

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


def check_schedule(value: Any) -> float | dict[int, float]:
    """Return a number of 0 or more, or positive values at steps; else raise ValueError."""
    knots = value if isinstance(value, dict) else {0: value or 1}
    for step, number in knots.items():
        is_step = type(step) is int and step >= 0
        if not is_step or type(number) not in (int, float) or not 0 < number < math.inf:
            raise ValueError("allowed: a number of 0 or more, or {step: number above 0, ...}")
    return value


Schedule = Annotated[
    Any, AfterValidator(check_schedule), WithJsonSchema({"type": "float >= 0 or {step: float > 0}"})
]


def log_linear(start: float, end: float, step: int, steps: int) -> float:
    """A line in the logarithm from `start` to `end` over `steps`, constant from there on."""
    progress = min(step / steps, 1.0)
    return math.exp((1 - progress) * math.log(start) + progress * math.log(end))


def at_step(schedule: dict[int, float], step: int) -> float:
    """The value of a schedule: log-linear between its knots, constant before and after them."""
    knots = sorted(schedule.items())
    later = [index for index, (knot, _) in enumerate(knots) if knot > step]
    if not later or later[0] == 0:
        return knots[-1 if not later else 0][1]
    (first, start), (last, end) = knots[later[0] - 1], knots[later[0]]
    return log_linear(start, end, step - first, last - first)


def ramp(end: float, steps: int, step: int) -> float:
    """A line from 0 to `end` over `steps`, constant from there on."""
    return end * min(step / steps, 1.0)


def decay_rates(optimizers: dict[str, Optimizer], end: float, step: int | Step, steps: int) -> None:
    """Set every learning rate to its first value times a factor, log-linear from 1 to `end`."""
    for name, optimizer in optimizers.items() if end < 1 else ():
        rate = partial(_decayed, optimizer.defaults["lr"], end, steps)
        for group in optimizer.param_groups:
            if isinstance(step, Step):  # a GPU's fused Adam reads its rate in single precision
                dtype = torch.float32 if group["params"][0].is_cuda else torch.float64
                group["lr"] = step.scheduled(f"lr {name}", rate, dtype)
            else:
                group["lr"] = rate(step)


def _decayed(first: float, end: float, steps: int, step: int) -> float:
    return first * log_linear(1.0, end, step, steps)
