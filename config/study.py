"""A study: many runs in one YAML file, every configuration with every seed.

    name: twoD                   # its runs go to runs/studies/<name>/
    seeds: 0-4                   # or 3, [0, 2], "0-2,7"
    train: {steps: 15625}        # keys of the section train, for every run
    runs:
      - config: config/twoD.yaml # path from where the command is typed
        name: twoD_long          # default: the name in that file
        overrides: {model.lr: 1e-4}
        grid: {objective.beta: [1, 4, 8]}  # every combination; names twoD_long-beta1, ...
    slurm: {partition: cpu, timeout_min: 240}

Of two settings of one key the later one counts: configuration, train, overrides, grid.
"""

import itertools
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from config.loader import ConfigError, named, parse_yaml, read_yaml, split_override, validate
from config.schema import Strict

NAME = r"^\w[\w.-]*$"
SEEDS = re.compile(r"\d{1,10}(-\d{1,10})?(,\d{1,10}(-\d{1,10})?)*")
MAX_SEEDS = 1000  # a slip such as 0-20250101 is refused, not expanded
PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")  # text that needs no quotes in YAML


class Member(NamedTuple):
    """One run; `overrides` hold all that differs from `config`, its name and seed included."""

    config: str
    overrides: tuple[str, ...]
    name: str
    seed: int


def parse_seeds(value: Any) -> Any:
    """A list of seeds from 3, [0, 2], "0-4" or "0-2,7"; other values are left to the schema."""
    if isinstance(value, list):
        return value
    parts = [part.split("-") for part in str(value).split(",")]
    if isinstance(value, bool) or not SEEDS.fullmatch(str(value)):
        parts = []
    ranges = [range(int(part[0]), int(part[-1]) + 1) for part in parts]
    if not ranges or not all(ranges) or sum(map(len, ranges)) > MAX_SEEDS:
        allowed = f"a number, a list of numbers, a range as 0-4 or 0-2,7 (at most {MAX_SEEDS})"
        raise PydanticCustomError("seeds", allowed)
    return list(itertools.chain(*ranges))


class Entry(Strict):
    """One configuration file and what is changed in it."""

    config: str
    name: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)


class Slurm(Strict):
    """What every job asks of SLURM."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    timeout_min: int = Field(24 * 60, ge=1, description="a run that needs longer is requeued")
    mem_gb: float = Field(4, gt=0)
    cpus_per_task: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)


class Study(Strict):
    """The runs of a study and how to start them."""

    name: str = Field(pattern=NAME)
    seeds: Annotated[list[int], BeforeValidator(parse_seeds), Field(min_length=1)]
    metrics: str = Field("all", description="what evaluate.py shall compute")
    train: dict[str, Any] = Field(default_factory=dict)
    runs: list[Entry] = Field(min_length=1)
    slurm: Slurm = Slurm()
    jobs: int | None = Field(None, ge=1, description="runs at a time")
    threads: int | None = Field(None, ge=1, description="threads a run")

    @property
    def home(self) -> Path:
        """Where its runs are trained: not where train.py alone puts a run of the same name."""
        return Path("runs") / "studies" / self.name

    @property
    def published(self) -> Path:
        """Where publish.py keeps its finished runs."""
        return Path("res") / self.name / "runs"


def load_study(path: str | os.PathLike) -> Study:
    """The study in a YAML file. Raises ConfigError: the key, the value, what is allowed."""
    values = read_yaml(path)
    with named(path):
        study = Study(**validate(Study, values))
        members(study)
    return study


def study_of(path: str, overrides: list[str]) -> Study:
    """The study that `--config path key=a,b seed=0-4` describes. Raises ConfigError.

    The commas outside of brackets and quotes separate the values of a key.
    """
    values = read_yaml(path)
    keys = {"seed": values.get("seed", 0), "name": values.get("name")}
    grid = {}
    for key, text in _each_once(overrides).items():
        if key in keys:
            keys[key] = text
            continue
        with named(f"value of '{key}'"):
            grid[key] = parse_yaml(f"[{text}]") or [None]  # key= is null, as for train.py
    run = {"config": path, "name": keys["name"], "grid": grid}
    given = {"name": keys["name"], "seeds": keys["seed"], "runs": [run]}
    return Study(**validate(Study, given))


def members(study: Study) -> list[Member]:
    """Every run: for each seed all configurations in the file's order.

    So a study that is stopped half way has compared them all. Raises ConfigError where two
    configurations would share a folder.
    """
    if len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"seeds: {study.seeds} is not allowed; allowed: each seed once")
    found: dict[str, tuple[int, str, tuple[str, ...]]] = {}
    for number, entry in enumerate(study.runs):
        for name, overrides in _configurations(study, entry, f"runs.{number}"):
            if name in found:
                other, config, _ = found[name]
                if other == number:
                    raise ConfigError(f"runs.{number}.grid: two choices are called {name!r}")
                raise ConfigError(
                    f"runs.{number}: the name {name!r} is taken by runs.{other} ({config}); "
                    "give one of them another name (key 'name')"
                )
            found[name] = number, entry.config, overrides
    return [
        Member(config, (*overrides, f"name={_text('name', name)}", f"seed={seed}"), name, seed)
        for seed in study.seeds
        for name, (_, config, overrides) in found.items()
    ]


def choose(study: Study, choices: list[str]) -> list[Member]:
    """The members that `name=twoD_vae,twoD_factor seed=0-2` names; a key left out chooses all.

    Raises ConfigError: what is chosen and not in the study.
    """
    found = members(study)
    there = {key: {getattr(member, key): None for member in found} for key in ("name", "seed")}
    for key, text in _each_once(choices).items():
        if key not in there:
            raise ConfigError(
                f"'{key}={text}' goes with --config, or into the study's file; allowed with "
                "--study: name=a,b and seed=0-2, which choose among its runs"
            )
        try:
            asked = text.split(",") if key == "name" else parse_seeds(text)
        except PydanticCustomError as error:
            allowed = "a number, or a range as 0-4 or 0-2,7"
            raise ConfigError(f"{key}: {text!r} is not allowed; allowed: {allowed}") from error
        for value in asked:
            if value not in there[key]:
                allowed = ", ".join(map(str, there[key]))
                raise ConfigError(f"{key}: {value!r} is not in the study; allowed: {allowed}")
        found = [member for member in found if getattr(member, key) in asked]
    if not found:
        raise ConfigError(f"{' '.join(choices)} chooses no run")
    return found


def member_folder(member: Member, runs: Path) -> Path:
    """The folder of a member in a folder of runs, such as Study.home or Study.published."""
    return runs / member.name / f"seed{member.seed}"


def _each_once(overrides: list[str]) -> dict[str, str]:
    """Key -> text of `key=a,b`."""
    found = {}
    for key, text in map(split_override, overrides):
        if key in found:
            raise ConfigError(f"{key} is given twice; allowed: once with all values, {key}=a,b")
        found[key] = text
    return found


def _configurations(study: Study, entry: Entry, where: str) -> list[tuple[str, tuple[str, ...]]]:
    for key in [*entry.overrides, *entry.grid]:
        if key in ("name", "seed"):
            raise ConfigError(
                f"{where}: '{key}' is no override; use the key '{where}.name' or 'seeds'"
            )
    base = entry.name or read_yaml(entry.config).get("name")
    if base is None:
        raise ConfigError(f"{where}: {entry.config} has no name; give one (key 'name')")
    common = _then({f"train.{key}": v for key, v in study.train.items()}, entry.overrides)
    found = []
    for values in itertools.product(*entry.grid.values()):
        choice = dict(zip(entry.grid, values, strict=True))
        with named(where):
            changed = {key: _text(key, value) for key, value in _then(common, choice).items()}
            varied = [_suffix(key, choice[key]) for key in choice if len(entry.grid[key]) > 1]
        texts = tuple(f"{key}={text}" for key, text in changed.items())
        found.append(("".join([str(base), *varied]), texts))
    return found


def _then(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Both in the order in which they apply: a key of both has its value and its place in later."""
    return {key: value for key, value in earlier.items() if key not in later} | later


def _suffix(key: str, value: Any) -> str:
    text = _text(key, value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        text = f"{value:g}"
    return f"-{key.rpartition('.')[2]}" + re.sub(r"[^\w.-]+", "_", text.replace("+", "")).strip("_")


def _text(key: str, value: Any) -> str:
    # JSON is YAML, and keeps the types; plain words stay readable without its quotes
    plain = isinstance(value, str) and PLAIN.fullmatch(value) and parse_yaml(value) == value
    try:
        return value if plain else json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:  # of a tag (!!), or within itself
        allowed = "numbers, text, true, false, null, lists and mappings of them"
        raise ConfigError(f"{key}: {value!r} is not allowed; allowed: {allowed}") from error
