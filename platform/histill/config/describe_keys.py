"""Describe a job's keys for --help and the pages: what each is for, and the default that holds."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from histill.config.keys import entry_model, nested_models
from histill.config.runs import RunConfig, fill_in

_Values = Mapping[str, Any]
_REQUIRED, _OWN = "required:", "of the command itself:"
_INDENT = " " * 33


@dataclass(frozen=True)
class Key:
    """One key of a configuration."""

    name: str
    purpose: str
    default: str  # "required", "default 3", or that of each kind of run

    def __str__(self) -> str:
        return f"{f'  {self.name}':<32} {self.purpose} ({self.default})".replace("  (", " (")


def describe_keys(model: type[BaseModel]) -> list[Key]:
    """The keys of `model`, whose text is a line of --help; a default may depend on the kind of run."""
    of_fields, held = _field_defaults(model), {}
    if issubclass(model, RunConfig):
        held = {name: fill_in(model.defaults_for(given), of_fields) for name, given in model.kinds.items()}
    return list(_describe(model, held or {"": of_fields}))


def format_keys(model: type[BaseModel], width: int) -> str:
    """The keys of `model` as the text of --help: the required ones, those of the command, and the others by section."""
    keys = describe_keys(model)
    names = {key.name for key in keys}
    parts: dict[str, list[Key]] = {_REQUIRED: [], _OWN: []}
    for key in keys:
        above = [key.name[:at] for at, letter in enumerate(key.name) if letter == "."]
        section = key.name.partition(".")[0]
        field = model.model_fields[section]
        if key.default == "required" and not any(each in names or "<" in each for each in above):
            title = _REQUIRED
        elif above or nested_models(field.annotation) or entry_model(field.annotation):
            title = f"{section}: {_name_section(field)}"
        else:
            title = _OWN
        parts.setdefault(title, []).append(key)
    lines: list[str] = []
    for title, found in parts.items():
        if found:
            lines += ["", *textwrap.wrap(title, width, subsequent_indent="    ")]
            lines += [line for key in found for line in _wrap(str(key), width)]
    return "\n".join(lines[1:])


def _wrap(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent=_INDENT, break_on_hyphens=False, break_long_words=False)


def _name_section(field: FieldInfo) -> str:
    below = nested_models(field.annotation)
    text = field.description or (below[0].__doc__ if below else None) or ""
    return text.strip().partition("\n")[0].rstrip(".")


def _describe(model: type[BaseModel], held: Mapping[str, _Values], prefix: str = "") -> Iterator[Key]:
    """The keys of `model`, whose defaults are `held` by each kind of run."""
    for name, field in model.model_fields.items():
        below, key = nested_models(field.annotation), f"{prefix}{name}"
        values = {kind: each[name] for kind, each in held.items() if name in each}
        if below and None in values.values():  # the keys below apply once one is set
            purpose = _name_section(field)
            switched = {kind: "null" if value is None else "as below" for kind, value in values.items()}
            yield Key(key, purpose, _name_default(switched))
        for sub in below:
            own = _field_defaults(sub)
            inside = {kind: fill_in(value, own) for kind, value in values.items() if value is not None}
            yield from _describe(sub, inside or {"": own}, f"{key}.")
        if below:
            continue
        default = "required" if field.is_required() else _name_default({k: _show(v) for k, v in values.items()})
        yield Key(key, field.description or "", default)
        if (entry := entry_model(field.annotation)) is not None:
            yield from _describe(entry, {"": _field_defaults(entry)}, f"{key}.<name>.")


def _field_defaults(model: type[BaseModel]) -> dict[str, Any]:
    """The defaults of the fields by name, those of sections nested; without required leaves."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        below = nested_models(field.annotation)
        if not field.is_required():
            default = field.get_default()
            found[name] = default.model_dump() if isinstance(default, BaseModel) else default
        elif below:
            found[name] = _field_defaults(below[0])
    return found


def _name_default(values: Mapping[str, str]) -> str:
    kinds: dict[str, list[str]] = {}
    for kind, value in values.items():
        kinds.setdefault(value, []).append(kind)
    if len(kinds) == 1:
        return f"default {next(iter(kinds))}"
    return "by the kind of run: " + "; ".join(f"{value} for {' or '.join(names)}" for value, names in kinds.items())


def _show(value: Any) -> str:
    return json.dumps(value, default=str)
