"""Studies: every configuration with every seed, described in one YAML file."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import Field

from config.load import ConfigError, apply_overrides, read_yaml, validate
from config.schema import Strict

MAX_SEEDS = 1000  # a slip such as 0-20250101 is refused


class Entry(Strict):
    """A configuration, or one for every combination of the values in `grid`."""

    config: str
    name: str | None = None  # default: the one in the file
    overrides: dict[str, Any] = Field({})
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({})


class Study(Strict):
    """The keys of a study."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    seeds: int | str | list[int]  # 3, [0, 2], "0-4" or "0-2,7"
    runs: list[dict[str, Any]] = Field(min_length=1)  # of Entry
    train: dict[str, Any] = Field({})  # overrides of every entry
    baseline: str | None = None  # the configuration that the others are compared with
    documents: list[str] = Field([])  # files with tables between markers
    shown: dict[str, str] = Field({})  # rows of the table "scores" and their names
    papers: dict[str, dict[str, float]] = Field({})  # more rows: name -> scores of a paper
    slurm: dict[str, Any] = Field({})  # parameters of submitit.AutoExecutor


def read_study(path: str) -> dict[str, Any]:
    """Return the study in a YAML file. Raises ConfigError."""
    values = read_yaml(path)
    if "model" in values:
        raise ConfigError(f"{path} is a configuration, not a study; use --config {path}")
    study = validate(Study, values)
    study["runs"] = [validate(Entry, entry) for entry in study["runs"]]
    return study


def study_of(path: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the study of all combinations that `key=a,b seed=0-4` describes."""
    texts = _as_dict(words)
    name, seeds, grid = texts.pop("name", None), texts.pop("seed", "0"), {}
    for key, values in texts.items():
        # as in a YAML list, commas inside of brackets and quotes do not separate values
        grid[key] = apply_overrides({}, [f"values=[{values}]"])["values"] or [None]
    entry = {"config": path, "name": name, "overrides": {}, "grid": grid}
    return validate(Study, {"name": "study", "seeds": seeds, "runs": [entry]})


def members(study: dict[str, Any], choices: Sequence[str] = ()) -> list[tuple[str, list[str]]]:
    """Return (file, overrides) of every run, or of those that `name=a,b seed=0-2` chooses.

    All configurations of a seed come before the next seed: an interrupted study compares them all.
    """
    configurations, texts = _configurations(study), _as_dict(choices)
    names = texts.pop("name", ",".join(configurations)).split(",")
    seeds = parse_seeds(texts.pop("seed", study["seeds"]))
    _refuse_others("choice", texts, ["name", "seed"])
    _refuse_others("name", names, configurations)
    _refuse_others("seed", seeds, parse_seeds(study["seeds"]))
    _refuse_others("baseline", [study["baseline"] or names[0]], configurations)
    chosen = [pair for name, pair in configurations.items() if name in names]
    return [(path, [*words, f"seed={seed}"]) for seed in seeds for path, words in chosen]


def _configurations(study: dict[str, Any]) -> dict[str, tuple[str, list[str]]]:
    """Name -> (file, overrides). Later settings of a key count: file, train, overrides, grid."""
    result = {}
    common = [(f"train.{key}", value) for key, value in study["train"].items()]
    for entry in study["runs"]:
        if {"name", "seed"} & {*entry["overrides"], *entry["grid"]}:
            raise ConfigError("'name' and 'seed' are no overrides; use the keys 'name' and 'seeds'")
        base = entry["name"] or read_yaml(entry["config"]).get("name") or ""
        settings = [*common, *entry["overrides"].items()]
        for values in itertools.product(*entry["grid"].values()):
            choice = list(zip(entry["grid"], values, strict=True))
            name = base + "".join(_suffix(k, v) for k, v in choice if len(entry["grid"][k]) > 1)
            if name in result:
                raise ConfigError(f"two configurations are named '{name}'; give one a key 'name'")
            pairs = [*settings, *choice, ("name", name)]
            words = [f"{key}={json.dumps(value, default=str)}" for key, value in pairs]
            result[name] = entry["config"], words
    return result


def parse_seeds(value: int | str | list[int]) -> list[int]:
    """Return seeds from 3, [0, 2], "0-4" or "0-2,7". Raises ConfigError."""
    parts, ranges = str(value).strip("[]").replace(" ", "").split(","), []
    if all(re.fullmatch(r"\d{1,9}(-\d{1,9})?", part) for part in parts):
        bounds = [part.split("-") for part in parts]
        ranges = [range(int(bound[0]), int(bound[-1]) + 1) for bound in bounds]
    count = sum(map(len, ranges))
    if not 0 < count <= MAX_SEEDS or len(set().union(*ranges)) < count:
        allowed = f"a list, 0-4 or 0-2,7, with each seed once and at most {MAX_SEEDS}"
        raise ConfigError(f"seeds: {value!r} is not allowed; allowed: {allowed}")
    return list(itertools.chain(*ranges))


def _as_dict(words: Sequence[str]) -> dict[str, str]:
    """Key -> text of `key=text`."""
    result = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key in result:
            raise ConfigError(f"'{word}' is not allowed; allowed: each key once, as key=a,b")
        result[key] = text
    return result


def _refuse_others(key: str, values: Iterable[Any], allowed: Iterable[Any]) -> None:
    for value in values:
        if value not in allowed:
            names = ", ".join(map(str, allowed))
            raise ConfigError(f"{key}: {value!r} is not in the study; allowed: {names}")


def _suffix(key: str, value: Any) -> str:
    """What a value adds to the name of a configuration, such as "-beta4" or "-lr0.0001"."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.-]+", "_", f"-{key.rpartition('.')[2]}{text.replace('+', '')}")
