"""The schema of a run.

The fixed sections are written here; what can be chosen by name (data set, model, objective) brings
its own: the keyword-only arguments of the chosen function are the keys of its section, with their
types, ranges and defaults. A hyperparameter is so declared once, where it is used.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model


class Strict(BaseModel):
    """A section: unknown keys, wrong types and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Train(Strict):
    """How long, in what batches, on what, and how often to report."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(128, ge=2, description="images a step, over all processes")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the hardware computes in it"
    )
    compile: bool = Field(
        False, description="torch.compile the networks; draws other noise than without"
    )
    log_every: int = Field(100, ge=1, description="steps a row of log.csv averages over")
    draw_every: int = Field(250, ge=1, description="steps between frames of training.gif")
    save_every: int = Field(1000, ge=1, description="steps between checkpoints")
    tensorboard: bool = Field(False, description="also write TensorBoard event files")


def settings_schema(
    name: str, function: Callable[..., Any], without: tuple[str, ...] = ()
) -> type[Strict]:
    """A section with one key per keyword-only argument of `function` that has a type.

    without: arguments that are no settings.
    """
    fields: dict[str, Any] = {}
    for key, parameter in inspect.signature(function).parameters.items():
        kind = parameter.annotation
        if key in without:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and kind is not parameter.empty:
            default = ... if parameter.default is parameter.empty else parameter.default
            if get_origin(kind) is tuple:
                kind = Annotated[kind, Field(strict=False)]  # YAML has lists only
            fields[key] = (kind, default)
    return create_model(name, __base__=Strict, **fields)


def sections_schema(
    name: str, functions: dict[str, Callable[..., Any]], without: tuple[str, ...] = ()
) -> type[Strict]:
    """A mapping with an optional section for each function, by its key."""
    fields = {k: (settings_schema(k, f, without) | None, None) for k, f in functions.items()}
    return create_model(name, __base__=Strict, **fields)


def _choice(choices: dict[str, Callable[..., Any]]) -> Any:
    """A section whose key `name` selects one of `choices` and with it the other keys."""
    sections = []
    for name, function in choices.items():
        section = settings_schema(name, function)
        sections.append(create_model(name, __base__=section, name=(Literal[name], ...)))
    if len(sections) == 1:
        return sections[0]
    return Annotated[Union[tuple(sections)], Field(discriminator="name")]  # noqa: UP007


def make_schema(
    datasets: dict[str, Callable[..., Any]],
    models: dict[str, Callable[..., Any]],
    objectives: dict[str, Callable[..., Any]],
) -> type[Strict]:
    """The schema of a whole run, from the three dictionaries of what can be chosen."""
    return create_model(
        "Run",
        __base__=Strict,
        name=(
            str,
            Field(pattern=r"^\w[\w.-]*$", description="the run goes to runs/<name>/seed<k>"),
        ),
        seed=(int, Field(0, ge=0, lt=2**31)),
        dataset=(_choice(datasets), ...),
        model=(_choice(models), ...),
        objective=(_choice(objectives) | None, None),
        train=(Train, ...),
    )
