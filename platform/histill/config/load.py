"""Load a YAML file and dotted overrides into a validated model; every error is one sentence."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from histill.config.base import Strict
from histill.config.keys import dotted_keys, nested_models, sections
from histill.config.plain_yaml import describe_problem, has_comment, parse_yaml
from histill.config.redact import find_credentials, names_secret, redact
from histill.config.validation_errors import classify_errors, describe_errors, is_shown
from histill.errors import InputError

__all__ = [
    "OneOf",
    "apply_overrides",
    "dotted_keys",
    "load_config",
    "nested_models",
    "parse_yaml",
    "read_yaml",
    "set_value",
    "validate",
]

C = TypeVar("C", bound=Strict)


@dataclass(frozen=True)
class OneOf(Generic[C]):
    """Alternative models, chosen by the value of one key of the configuration; by default the first."""

    key: str
    models: Mapping[str, type[C]]

    def chosen(self, data: Mapping[str, Any]) -> type[C]:
        """The model for `data`. Raises InputError listing the valid values."""
        named = data.get(self.key, next(iter(self.models)))
        if not isinstance(named, str) or named not in self.models:
            shown = redact(repr(named)) if isinstance(named, str) else "not text"
            raise InputError(
                f"{self.key} is {shown}; it is one of {', '.join(self.models)}.", code="config-wrong-value"
            )
        return self.models[named]


def load_config(model: type[C] | OneOf[C], path: str | None, overrides: Sequence[str] = ()) -> C:
    """Read `path` (YAML, or nothing), apply `key.sub=value` overrides and validate against `model`.

    Raises InputError naming the key, the value and the nearest valid name.
    """
    models = [model] if not isinstance(model, OneOf) else list(model.models.values())
    names = [name for each in models for name in dotted_keys(each)]
    data = apply_overrides(read_yaml(path) if path else {}, overrides, known={*names, *sections(names)})
    chosen = model.chosen(data) if isinstance(model, OneOf) else model
    return validate(chosen, data, redact(path) if path else "the command line")


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML mapping from a local file."""
    shown = redact(path)
    try:
        data = parse_yaml(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no path of a file"
        raise InputError(
            f"config {shown} cannot be read ({reason}); give the path of a YAML file.", code="config-unreadable"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"config {shown} {describe_problem(error).lstrip()}.", code="config-yaml") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(
            f"config {shown} holds a {type(data).__name__}; keys and values were expected; write name: first.",
            code="config-unreadable",
        )
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str], known: Collection[str] = ()) -> dict[str, Any]:
    """`data` with each `dotted.key=value` applied; values are parsed as YAML (`3`, `[1, 2]`, `null`, `text`).

    Raises InputError for a malformed override (repeated in the message only if it is a key in `known`), and for one
    that conflicts with another.
    """
    given: list[tuple[tuple[str, ...], set[tuple[str, ...]]]] = []
    for position, override in enumerate(overrides, start=1):
        key, separator, text = override.partition("=")
        path = tuple(key.split("."))
        if not separator or not all(part.strip() == part != "" for part in path):
            shown = repr(override) if override in known else f"number {position}"
            raise InputError(
                f"override {shown} is not of the form key.sub=value; write it so, without spaces.",
                code="command-line-wrong",
            )
        shown = repr(key) if is_shown(key) else f"number {position}"
        try:
            value = parse_yaml(text)
            if has_comment(text):
                raise InputError(
                    f"the value of override {shown} holds a #, which begins a comment in YAML; put it in quotes.",
                    code="config-yaml",
                )
        except yaml.YAMLError as error:
            said = (
                " is not valid YAML" if names_secret(override) else describe_problem(error).replace(" at line 1:", ":")
            )
            raise InputError(f"the value of override {shown}{said}.", code="config-yaml") from None
        _refuse_credentials(value, "the command line", path)
        leaves = set(_leaves(path, value))
        for former, set_before in given:
            if path == former[: len(path)] or any(_overlap(one, other) for one in leaves for other in set_before):
                said = "is given twice" if path == former else f"conflicts with {redact('.'.join(former))!r}"
                raise InputError(f"override {shown} {said}; keep one of them.", code="command-line-wrong")
        given.append((path, leaves))
        data = set_value(data, key, value)
    return dict(data)


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _leaves((*path, name), item)
    else:
        yield path


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether one equals the other or lies below it."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def set_value(data: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of `data` with the dotted `key` set to `value`; missing levels are created."""
    head, _, rest = key.partition(".")
    below = data.get(head)
    if not rest:
        return {**data, head: value}
    return {**data, head: set_value(below if isinstance(below, Mapping) else {}, rest, value)}


def validate(model: type[C], data: Mapping[str, Any], source: str, *, in_python: bool = False) -> C:
    """Validate `data` as a `model`. Raises InputError with one sentence per fault.

    `source` is named by the message, which asks a caller `in_python` for arguments.
    """
    _refuse_credentials(data, source)
    try:
        return model.model_validate(_tuples_for_lists(data))
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise InputError(
            f"{source}: {describe_errors(model, faults, in_python=in_python)}", code=classify_errors(faults)
        ) from None


def _refuse_credentials(data: Any, source: str, path: Sequence[str] = ()) -> None:
    if (found := find_credentials(data, path)) is not None:
        raise InputError(
            f"{source}: the address at {'.'.join(found)!r} holds credentials or a query; take them out and set the "
            "AWS_* or MLFLOW_TRACKING_* environment variables instead.",
            code="config-credentials",
        )


def _tuples_for_lists(value: Any) -> Any:
    """Convert lists to tuples: YAML has only lists, frozen models hold tuples, and strict mode does not convert."""
    if isinstance(value, Mapping):
        return {key: _tuples_for_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples_for_lists(item) for item in value)
    return value
