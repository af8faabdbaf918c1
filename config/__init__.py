"""Strict, typed configuration: YAML files, overrides, validation with clear messages."""
# ruff: noqa: F401

from config.load import REMOVED, ConfigError, apply_overrides, read_yaml, to_yaml, validate
from config.schema import describe, make_schema, sections_schema
