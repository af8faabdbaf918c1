"""The schema of a run: the fixed sections, and the options of what a configuration can choose.

The keyword-only arguments of a data set, model or objective are the options of its section, with
their types, ranges and defaults. So an option is declared once, in the signature that uses it.
"""

import inspect
import json
import re
import textwrap
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

Choices = dict[str, Callable[..., Any]]  # name -> data set, model, objective or metric
# The words of `describe` for the types and limits of a JSON schema.
TYPES = {"string": "text", "integer": "int", "number": "float", "boolean": "true | false"}
RANGES = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class Strict(BaseModel):
    """A section that refuses unknown keys, wrong types and values out of range."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Train(Strict):
    """How long a run trains, on what, and how often it reports."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(128, ge=2, description="images per step, over all processes")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto prefers a GPU")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto is bf16 where the hardware computes in it"
    )
    cuda_graphs: bool = Field(
        False, description="replay steps as CUDA graphs: faster on one GPU, not yet tested there"
    )
    log_every: int = Field(100, ge=1, description="steps that a row of log.csv averages")
    draw_every: int = Field(250, ge=1, description="steps between frames of training.gif")
    save_every: int = Field(1000, ge=1, description="steps between saves of checkpoint.pt")
    score_every: int = Field(0, ge=0, description="steps between rows of scores.csv; 0 is off")
    keep_every: int = Field(0, ge=0, description="steps between permanent checkpoints; 0 is off")
    tensorboard: bool = Field(False, description="also log to TensorBoard event files")
    wandb: Literal["disabled", "offline", "online"] = Field(
        "disabled", description="also log to Weights & Biases"
    )


def make_schema(
    datasets: Choices, models: Choices, objectives: Choices, *of_data: Callable[..., Any]
) -> type[BaseModel]:
    """Return the schema of a run; functions `of_data` have options of every data set."""
    name = Field(pattern=r"^\w[\w.-]*$", description="the run is saved in runs/<name>/seed<seed>")
    seed = Field(0, ge=0, lt=2**31, description="determines weights, batches and noise")
    return create_model(
        "Run",
        __base__=Strict,
        name=(str, name),
        seed=(int, seed),
        dataset=(_choice(datasets, *of_data), ...),
        model=(_choice(models), ...),
        objective=(_choice(objectives) | None, None),
        train=(Train, ...),
    )


def sections_schema(name: str, functions: Choices) -> type[BaseModel]:
    """Return a schema with an optional section of settings for each function."""
    fields = {key: (_section(key, function) | None, None) for key, function in functions.items()}
    return create_model(name, __base__=Strict, **fields)


def _choice(functions: Choices, *common: Callable[..., Any]) -> Any:
    """The type of a section whose key `name` selects a function and with it the other keys."""
    sections = []
    for name, choice in functions.items():
        sections.append(_section(name, choice, *common, name=Literal[name]))
    return Annotated[Union[tuple(sections)], Field(discriminator="name")]  # noqa: UP007


def _section(title: str, *functions: Callable[..., Any], **fields: Any) -> type[BaseModel]:
    """A section whose keys are `fields` and the typed keyword-only arguments of functions."""
    for function in functions:
        texts = _documentation(function)[1]
        for key, parameter in inspect.signature(function).parameters.items():
            kind = parameter.annotation
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            if get_origin(kind) is tuple:
                kind = Annotated[kind, Field(strict=False)]  # YAML has lists only
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[key] = kind, Field(default, description=texts.get(key))
    summary = _documentation(functions[0])[0]
    return create_model(title, __base__=Strict, __doc__=summary, **fields)


def _documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring, and the texts of the arguments below `Args:`."""
    text = inspect.getdoc(function) or ""
    arguments = text.partition("Args:\n")[2].partition("\n\n")[0]
    texts = {}
    for key, lines in re.findall(r"^    (\w+): (.*(?:\n      .*)*)", arguments, re.MULTILINE):
        texts[key] = " ".join(lines.split()).rstrip(".")
    return " ".join(text.partition("\n\n")[0].split()), texts


def sections(schema: type[BaseModel]) -> dict[str, list[type[BaseModel]]]:
    """Return key -> the sections that it can hold; the key "" is the whole."""
    return {"": [schema]} | {k: _models(f.annotation) for k, f in schema.model_fields.items()}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type such as `A | B | None`."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def describe(schema: type[BaseModel]) -> str:
    """Return all keys with type, range, default and description, as text for --help."""
    lines = []
    for section, choices in sections(schema).items():
        for choice in choices:
            keys = choice.model_json_schema()["properties"]
            heading = section or choice.__name__
            if len(choices) > 1:
                heading += f".name={choice.__name__}"
            lines += ["", *textwrap.wrap(f"{heading}: {choice.__doc__ or ''}", 100)]
            for key, field in keys.items():
                if "const" in field or "$ref" in str(field):  # it has a heading
                    continue
                known = "default" in field
                default = f"default {json.dumps(field['default'])}" if known else "required"
                text = f"  {key} ({_type(field)}; {default}): {field.get('description', '')}"
                lines += textwrap.wrap(text, 100, subsequent_indent="      ")
    return "\n".join(lines)


def _type(field: dict[str, Any]) -> str:
    """The type and the range of a key in words."""
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "items" in field:
        return f"list of {_type(field['items'])}"
    kind = TYPES.get(field["type"], field["type"])
    limits = [f"{sign} {field[key]}" for key, sign in RANGES.items() if key in field]
    return f"{kind} {', '.join(limits)}".strip()
