"""Write commands for users to run: how a job is called, and with which keys."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from histill.config.base import Strict
from histill.config.plain_yaml import parse_yaml


def format_command(job: str, keys: Mapping[str, Any]) -> str:
    """The command line of the use case `job` with dotted `keys`, to be pasted into a shell."""
    words = [f"{key}={_format_value(value)}" for key, value in keys.items()]
    return shlex.join(["histill", job.partition("_")[0], *words])


def list_changed_keys(config: Strict) -> dict[str, Any]:
    """The dotted keys of `config` that differ from the defaults of its fields."""
    return _flatten(config.model_dump(mode="json", exclude_defaults=True), "")


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        plain = isinstance(value, Mapping) and value and all("." not in key and key for key in value)
        flat |= _flatten(value, f"{prefix}{name}.") if plain else {f"{prefix}{name}": value}
    return flat


def _format_value(value: Any) -> str:
    """`value` as YAML in one line, which is read back as it is."""
    if isinstance(value, str):
        try:
            if parse_yaml(value) == value:
                return value
        except yaml.YAMLError:
            pass
    return json.dumps(value)
