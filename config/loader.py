"""Reads YAML, applies `key.subkey=value` overrides, validates, and words the errors."""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

LARGEST = 2**31  # what no count and no seed reaches


class ConfigError(ValueError):
    """One sentence that names the key, the value and what is allowed."""


@contextmanager
def named(where: object) -> Iterator[None]:
    """A context whose ConfigError opens with where the mistake is: a file, a key."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"key {key!r} stands twice (again in line {line})")
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


# Plain scalars as YAML 1.2 reads them: 1e-4 is a number, 010 is ten, 1:30 and yes are text.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_Loader.yaml_implicit_resolvers = {}
for _kind, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}",
        re.compile(f"^(?:{_pattern})$"),
        [*_first, *([""] if _kind == "null" else [])],
    )


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    value = int(node.value, 10)
    if abs(value) >= LARGEST:
        raise ConfigError(f"{value} is not allowed; allowed: whole numbers below {LARGEST:,}")
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts text into quotes which any of both YAML versions takes for a number."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])
    + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in yaml.SafeDumper.yaml_implicit_resolvers | _Loader.yaml_implicit_resolvers
}


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError where there is none to read."""
    path = Path(path)
    try:
        with named(path):
            values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    return values


def parse_yaml(text: str) -> Any:
    """The value that a YAML text stands for. Raises ConfigError where it is none."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"not YAML{where}: {getattr(error, 'problem', error)}") from error
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError("not YAML that can be read: it is nested too deeply") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # a tag's constructor
        raise ConfigError(
            f"not YAML that can be read: a tag (!!) does not fit ({error})"
        ) from error


def split_override(override: str) -> tuple[str, str]:
    """Key and text of `key=value`. Raises ConfigError if it is not of that form."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}' is not of the form key=value (objective.beta=8)")
    return key, text


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of `values` with each `key.subkey=value` set. Raises ConfigError if malformed."""
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for override in overrides:
        key, text = split_override(override)
        section, _, leaf = key.rpartition(".")
        if "." in section:
            raise ConfigError(f"unknown key '{key}'; keys have two levels, such as objective.beta")
        target = values
        if section:
            target = values.setdefault(section, {})
            if target is None:
                target = values[section] = {}
        if not isinstance(target, dict):
            raise ConfigError(f"'{section}' is {target!r}, not a section: '{key}' cannot be set")
        with named(f"value of '{key}'"):
            target[leaf] = parse_yaml(text)
    return values


def validate(
    schema: type[BaseModel], values: dict[str, Any], *, complete: bool = True
) -> dict[str, Any]:
    """`values` checked and (if `complete`) completed with defaults, as plain Python values.

    Raises ConfigError with one line a mistake: the key, the value, what is allowed.
    """
    try:
        return schema.model_validate(values).model_dump(exclude_unset=not complete)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(schema, values, e) for e in error.errors())
        raise ConfigError("\n".join(lines)) from error


def _explain(schema: type[BaseModel], values: dict[str, Any], error: dict[str, Any]) -> str:
    # pydantic puts the chosen member of a union (its name) into the path: keep the user's keys only
    path, node = [], values
    for part in error["loc"]:
        if isinstance(node, dict) and part not in node and part == node.get("name"):
            continue
        path.append(str(part))
        node = node.get(part) if isinstance(node, dict) else None
    key = ".".join(path)
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("extra_forbidden", "invalid_key"):
        section = values.get(path[0]) if len(path) > 1 else values
        known = _known_keys(schema, path[:-1], section)
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"allowed: {', '.join(known)}"
        return f"unknown key '{key}'; {hint}"
    if kind == "missing":
        return f"key '{key}' is missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = context.get("expected_tags") or ", ".join(_names(schema, path))
        given = context.get("tag")
        if given is None:
            return f"key '{key}.name' is missing; allowed: {tags}"
        return f"{key}.name: {given!r} is not allowed; allowed: {tags}"
    if kind in ("model_type", "model_attributes_type"):
        names = [member.__name__ for member in _members(schema, path)]
        name = error["input"] if error["input"] in names else names[0]
        several = len(names) > 1  # of which the key `name` chooses
        like = f"{{name: {name}}}" if several else ", ".join(_known_keys(schema, path, None))
        return f"{key}: {error['input']!r} is not allowed; allowed: a section with keys, as {like}"
    allowed = error["msg"].replace("Input should be ", "").replace("Input should have", "has")
    return f"{key}: {error['input']!r} is not allowed; allowed: {allowed}"


def _members(schema: type[BaseModel], path: list[str]) -> list[type[BaseModel]]:
    """The section classes that may stand at `path` (empty: the whole)."""
    if not path:
        return [schema]
    field = schema.model_fields.get(path[0])
    found, queue = [], [field.annotation] if field else []
    while queue:
        item = queue.pop(0)
        if isinstance(item, type) and issubclass(item, BaseModel):
            found.append(item)
        else:
            queue += list(getattr(item, "__args__", ()))
    return found


def _names(schema: type[BaseModel], path: list[str]) -> list[str]:
    return [f"'{member.__name__}'" for member in _members(schema, path)]


def _known_keys(schema: type[BaseModel], path: list[str], section: Any) -> list[str]:
    members = _members(schema, path)
    chosen = section.get("name") if isinstance(section, dict) and path else None
    if len(members) > 1:
        members = [m for m in members if m.__name__ == chosen] or members
    return list(dict.fromkeys(key for member in members for key in member.model_fields))


def describe(schema: type[BaseModel]) -> str:
    """All keys with type, range, default and what they mean, as indented text for --help."""
    lines = []
    for key, field in schema.model_fields.items():
        members = _members(schema, [key])
        if not members:
            lines.append(_line("", key, field))
        for member in members:
            choice = f" (name: {member.__name__})" if "name" in member.model_fields else ""
            lines.append(f"{key}{choice}")
            lines += [
                _line("  ", sub, f) for sub, f in member.model_fields.items() if sub != "name"
            ]
    return "\n".join(lines)


def _line(indent: str, key: str, field: Any) -> str:
    kind = getattr(field.annotation, "__name__", str(field.annotation))
    kind = str(field.annotation) if kind in ("Literal", "Union", "Optional") else kind
    kind = kind.replace("typing.", "")
    ranges = [str(m) for m in field.metadata]
    default = "required" if field.is_required() else f"default {field.default!r}"
    text = ", ".join([kind, *ranges, default])
    return f"{indent}{key}: {text}" + (f" - {field.description}" if field.description else "")


def to_yaml(values: dict[str, Any]) -> str:
    """The text of config.yaml: keys in the schema's order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
