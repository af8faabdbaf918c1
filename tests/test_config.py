"""Configuration: what a user types is used, or refused in one sentence that names it."""

from pathlib import Path
from typing import Annotated

import pytest
import torch
from conftest import CONFIGS
from pydantic import Field

import config
from data import DATASETS, restrict
from models import MODELS
from models.objectives import OBJECTIVES

RES = Path("res")
PUBLISHED = [*RES.glob("*/runs/*/*/config.yaml"), *RES.glob("2dshapes/**/*.yaml")]
WEIGHTS = sorted(RES.rglob("*.pt"))
SCHEMA = config.make_schema(DATASETS, MODELS, OBJECTIVES, restrict)


def resolve(path, *overrides):
    return config.validate(SCHEMA, config.apply_overrides(config.read_yaml(path), list(overrides)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_configurations_are_valid_and_survive_a_round_trip(path, tmp_path):
    values = resolve(path)
    (tmp_path / "again.yaml").write_text(config.to_yaml(values))
    assert resolve(tmp_path / "again.yaml") == values
    assert values["name"] == path.stem
    assert f"python train.py --config config/{path.name}" in path.read_text().splitlines()[0]


def test_published_configurations_are_still_valid():
    assert len(PUBLISHED) == len(WEIGHTS) == 119
    for path in PUBLISHED:
        published = config.read_yaml(path)
        values = config.validate(SCHEMA, published)
        for section in ("model", "objective", "train"):
            for key, value in (published[section] or {}).items():
                if f"{section}.{key}" not in config.REMOVED or key in values[section]:
                    valid = values[section][key]
                    assert valid == value or valid == type(valid)(value), path  # a list, a tuple
    for path in WEIGHTS:
        config.validate(SCHEMA, torch.load(path, weights_only=True, mmap=True)["config"])


def option(*, betas: tuple[float, float] = (0.5, 0.9)):
    """A model with an option that has the name of a removed key."""


def test_a_removed_key_is_dropped_only_at_the_value_that_is_still_right():
    schema = config.make_schema(*[{"a": lambda: None, "b": option}] * 3)
    values = {"name": "x", "dataset": {"name": "a"}, "train": {"steps": 1, "compile": False}}
    values["model"] = {"name": "a", "betas": (0.5, 0.999)}
    result = config.validate(schema, values)
    assert (result["model"], "compile" in result["train"]) == ({"name": "a"}, False)
    values["model"]["name"] = "b"
    assert config.validate(schema, values)["model"]["betas"] == (0.5, 0.999)
    assert values["train"]["compile"] is False
    values["train"]["compile"] = True
    with pytest.raises(config.ConfigError, match=r"unknown key 'train.compile'; allowed: steps"):
        config.validate(schema, values)


def test_overrides_reach_every_key_and_keep_their_type():
    overrides = ["objective={name: beta_vae}", "objective.beta=8", "seed=3", "model.lr=1e-4"]
    values = resolve("config/twoD.yaml", *overrides)
    assert values["objective"] == {"beta": 8.0, "name": "beta_vae"}
    assert (values["seed"], values["model"]["lr"]) == (3, 1e-4)
    assert config.apply_overrides({"a": None}, ["a.b=1"]) == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-2E3", -2e3), (".5e1", 5.0), ("", None), ("[1, a]", [1, "a"]), ("'8'", "8")],
)
def test_a_value_reads_the_same_in_a_file_and_on_the_command_line(tmp_path, text, value):
    (tmp_path / "x.yaml").write_text(f"a: {text}\n")
    assert config.read_yaml(tmp_path / "x.yaml") == {"a": value}
    assert config.apply_overrides({}, [f"a={text}"]) == {"a": value}


def test_text_is_used_as_it_is(tmp_path):
    assert config.apply_overrides({}, ["a.b=W/set #1/g.npz"]) == {"a": {"b": "W/set #1/g.npz"}}
    values = {"a": ["09", "1e3", "1.5", "1.5e+3", "yes", "1:30", "null", "", "a", "2020-01-01"]}
    (tmp_path / "x.yaml").write_text(config.to_yaml(values))
    assert config.read_yaml(tmp_path / "x.yaml") == values


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.betta=8", r"unknown key 'objective.betta'; did you mean 'beta'\?"),
        ("model.zzz=8", "unknown key 'model.zzz'; allowed: name, network, latent_dim"),
        ("objective.beta=abc", "objective.beta: 'abc' is not allowed; allowed: a number of 0 or"),
        ("objective=beta_vae", "objective: 'beta_vae' is not allowed; .* a section, as in"),
        ("objective={beta: 4}", "key 'objective.name' is missing"),
        ("objective.name=x", "objective.name: 'x' is not allowed; allowed: 'vae', 'beta_vae'"),
        ("objective.name=beta_va", "'beta_va' is not allowed; did you mean 'beta_vae'?"),
        ("train={}", "key 'train.steps' is missing"),
        ("train.steps=0", "train.steps: 0 is not .* greater than or equal to 1"),
        ("train.batch_size=true", "train.batch_size: True is not .* valid integer"),
        ("train.precision=fp8", "'fp8' is not allowed; .* 'auto', 'fp32' or 'bf16'"),
        ("objective.beta.x=3", "'objective.beta.x=3' is not of the form section.key=value"),
        ("name=a/b", "name: 'a/b' is not .* allowed: letters, digits"),
    ],
)
def test_a_mistake_is_named(override, message):
    with pytest.raises(config.ConfigError, match=message):
        resolve("config/twoD.yaml", override)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: [1", "x.yaml is not valid YAML: .*line 2"),
        (b"- 1", "x.yaml must hold a mapping of keys to values"),
        (b"seed: 1\nseed: 2", "x.yaml is not valid YAML: the key 'seed' occurs twice"),
        (b"a: &x [1, 2]\nb: [*x, *x]", "aliases"),
        (None, "cannot read .*x.yaml"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(config.ConfigError, match=message):
        config.read_yaml(tmp_path / "x.yaml")


def metric(samples, rng, *, bins: Annotated[int, Field(ge=2)] = 20, without: tuple[str, ...] = ()):
    """A metric. More about it.

    Args:
        bins: bins of equal width,
            in which codes are counted.

    Returns:
        without: nothing
    """


def test_sections_of_settings():
    schema = config.sections_schema("Metrics", {"metric": metric, "other": lambda samples: None})
    values = config.validate(schema, {"metric": {"without": ["a"]}}, complete=False)
    assert values == {"metric": {"without": ("a",)}}
    with pytest.raises(config.ConfigError, match=r"'metric.bin'; did you mean 'bins'\?"):
        config.validate(schema, {"metric": {"bin": 3}})
    text = "  bins (int >= 2; default 20): bins of equal width, in which codes are counted"
    lines = ["metric: A metric. More about it.", text, "  without (list of text; default []):"]
    assert config.describe(schema).splitlines()[-5:] == [*lines, "", "other:"]


def test_the_description_has_every_key():
    lines = config.describe(SCHEMA).splitlines()
    assert max(map(len, lines)) <= 100
    for name in (*DATASETS, *MODELS, *OBJECTIVES):
        assert any(f".name={name}:" in line for line in lines)
    assert "  steps (int >= 1; required): optimiser steps" in lines
    keys = [line for line in lines if line[:2] == "  " and line[2] != " "]
    assert [line for line in keys if line.endswith("):")] == []  # every key has a description
