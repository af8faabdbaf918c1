"""Typed, strict configuration: YAML files, overrides from the command line, one clear sentence."""

from config.loader import (
    ConfigError,
    apply_overrides,
    describe,
    named,
    parse_yaml,
    read_yaml,
    to_yaml,
    validate,
)
from config.schema import make_schema, sections_schema

__all__ = [
    "ConfigError",
    "apply_overrides",
    "describe",
    "make_schema",
    "named",
    "parse_yaml",
    "read_yaml",
    "sections_schema",
    "to_yaml",
    "validate",
]
