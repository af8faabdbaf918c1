"""Reads YAML, applies overrides, validates a configuration and words its mistakes."""

import copy
import difflib
import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from config.schema import sections

REMOVED = {  # keys of published configurations that no longer exist -> the only value still right
    "train.compile": False,
    "objective.sampling": "mss",
    "model.q_std": "fixed",
    "model.betas": [0.5, 0.999],
    "model.g_steps": 1,
    "model.instance_noise_steps": 0,
    "model.label_smoothing": 0.0,
}


class ConfigError(ValueError):
    """A mistake in a configuration; one sentence names the key, the value and what is allowed."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses repeated keys, and aliases, which may expand without end."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key '{key}' occurs twice")
        return super().construct_mapping(node, deep)


# 1e-4 is a number, which YAML 1.1 takes for text.
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which the loader would take for a number, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ConfigError if there is none."""
    try:
        values = _parse(Path(path).read_bytes(), path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    return values


def _parse(text: str | bytes, source: object) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def to_yaml(values: dict[str, Any]) -> str:
    """Return values as YAML text, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of `values` with every override `key=value` or `section.key=value` applied."""
    values = copy.deepcopy(values)
    for override in overrides:
        match = re.fullmatch(r"(?:([^.=]+)\.)?([^.=]+)=(.*)", override, re.DOTALL)
        if not match:
            raise ConfigError(f"'{override}' is not of the form section.key=value")
        section, key, text = match.groups()
        value = _parse(text, f"the value in '{override}'")
        is_text = isinstance(value, str) or override.startswith("name=")
        if is_text and text.strip() and text.lstrip()[0] not in "'\"":
            value = text  # unquoted text is meant as it is typed; YAML would end it before " #"
        if section and not isinstance(values.get(section), dict):
            values[section] = {}
        table = values[section] if section else values
        table[key] = value
    return values


def validate(
    schema: type[BaseModel], values: dict[str, Any], complete: bool = True
) -> dict[str, Any]:
    """Return valid `values`, if `complete` with all defaults; ConfigError has a line a mistake."""
    values = copy.deepcopy(values)
    for key, allowed in REMOVED.items():
        section, name = key.split(".")
        table = values.get(section)
        if not isinstance(table, dict) or name in _keys(schema, section, table):
            continue
        # as text, because a tuple of a checkpoint is a list in YAML
        if name in table and json.dumps(table[name]) == json.dumps(allowed):
            del table[name]
    try:
        return schema.model_validate(values).model_dump(exclude_unset=not complete)
    except ValidationError as error:
        lines = [_explain(schema, values, mistake) for mistake in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def _keys(schema: type[BaseModel], section: str, table: dict[str, Any]) -> list[str]:
    """The keys that a section may have; `table` holds its values."""
    choices = sections(schema).get(section, [])
    for choice in choices:
        if len(choices) == 1 or choice.__name__ == table.get("name"):
            return list(choice.model_fields)
    return []


def _explain(schema: type[BaseModel], values: dict[str, Any], mistake: dict[str, Any]) -> str:
    """One sentence about a mistake that pydantic found."""
    path, kind, value = [str(part) for part in mistake["loc"]], mistake["type"], mistake["input"]
    section = path[0] if len(path) > 1 else ""
    table = values[section] if section else values
    if section and isinstance(table, dict) and path[1] == table.get("name"):
        del path[1]  # pydantic adds the name of the chosen section
    key = ".".join(path)

    if kind == "extra_forbidden":
        keys = _keys(schema, section, table)
        close = difflib.get_close_matches(path[-1], keys, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"allowed: {', '.join(keys)}"
        if not close and "name" in keys:  # the file may hold the keys of another choice
            hint += f"; to choose another name, set the whole section: '{section}={{name: ...}}'"
        return f"unknown key '{key}'; {hint}"
    if kind == "missing":
        return f"key '{key}' is missing"
    if kind == "union_tag_not_found":
        return f"key '{key}.name' is missing"
    allowed = mistake["msg"].replace("Input should be ", "allowed: ").removeprefix("Value error, ")
    if kind == "union_tag_invalid":
        key, value, tags = f"{key}.name", value["name"], mistake["ctx"]["expected_tags"]
        close = difflib.get_close_matches(str(value), tags.replace("'", "").split(", "), n=1)
        allowed = f"did you mean '{close[0]}'?" if close else f"allowed: {tags}"
    if kind == "model_attributes_type":
        allowed = f"allowed: a section, as in '{key}={{name: ...}}'"
    if kind == "string_pattern_mismatch":
        allowed = "allowed: letters, digits, _ . -"
    if kind == "string_type":
        allowed = f"allowed: text; a number as text needs quotes, as in '{key}=\"{value}\"'"
    return f"{key}: {value!r} is not allowed; {allowed}"
