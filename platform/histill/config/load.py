"""From a YAML file and dotted overrides to a validated model; every refusal is one sentence."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from histill.config.base import Strict
from histill.errors import InputError

C = TypeVar("C", bound=Strict)


@dataclass(frozen=True)
class OneOf(Generic[C]):
    """Models of which the value of one key of the configuration chooses; without it the first."""

    key: str
    models: Mapping[str, type[C]]

    def chosen(self, data: Mapping[str, Any]) -> type[C]:
        """The model for `data`. Raises InputError naming those there are."""
        named = data.get(self.key, next(iter(self.models)))
        if named not in self.models:
            raise InputError(f"{self.key} is {named!r}; it is one of {', '.join(self.models)}.")
        return self.models[named]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as a string, since it has no dot; everyone who types a learning rate means the number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """YAML text as plain Python values (safe loader: no tag can import or call anything)."""
    return yaml.load(text, Loader=_Loader)


def load_config(model: type[C] | OneOf[C], path: str | None, overrides: Sequence[str] = ()) -> C:
    """Read `path` (YAML, or nothing), apply `key.sub=value` overrides and validate against `model`.

    Raises InputError naming the key, the value and the nearest valid name.
    """
    data = with_overrides(read_yaml(path) if path else {}, overrides)
    return validate(model.chosen(data) if isinstance(model, OneOf) else model, data, path or "the command line")


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML mapping from a local file."""
    try:
        data = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config {path} cannot be read ({error.strerror}); give the path of a YAML file.") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise InputError(f"config {path} is not valid YAML{line}: {getattr(error, 'problem', error)}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"config {path} holds a {type(data).__name__}; a mapping of keys to values was expected.")
    return data


def with_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`data` with each `dotted.key=value` set; values are read as YAML (`3`, `[1, 2]`, `null`, `text`)."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"override {override!r} is not of the form key.sub=value.")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            raise InputError(f"the value of override {key!r} is not valid YAML; quote it.") from None
        data = with_value(data, key, value)
    return dict(data)


def with_value(data: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of `data` in which the dotted `key` holds `value`; missing levels are made."""
    head, _, rest = key.partition(".")
    below = data.get(head)
    if not rest:
        return {**data, head: value}
    return {**data, head: with_value(below if isinstance(below, Mapping) else {}, rest, value)}


def validate(model: type[C], data: Mapping[str, Any], source: str) -> C:
    """`data` as a `model`, or InputError with every fault in one sentence each."""
    try:
        return model.model_validate(_tuples_for_lists(data))
    except ValidationError as error:
        faults = [_sentence(model, fault) for fault in error.errors(include_url=False)]
        raise InputError(f"{source}: " + " ".join(faults)) from None


def _tuples_for_lists(value: Any) -> Any:
    """YAML knows lists only, frozen models hold tuples, and strict mode does not convert."""
    if isinstance(value, Mapping):
        return {key: _tuples_for_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples_for_lists(item) for item in value)
    return value


def _sentence(model: type[BaseModel], fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    value = _without_secrets(key, fault["input"])
    if fault["type"] == "extra_forbidden":
        names = list(dotted_keys(model))
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(names)}."
        return f"{key!r} (value {value!r}) is not a key; {hint}"
    if fault["type"] == "missing":
        return f"{key!r} is missing; set it in the file or as {key}=... on the command line."
    message = fault["msg"].removeprefix("Value error, ").rstrip(".")
    if fault["type"] == "value_error" and (not key or isinstance(value, Mapping | BaseModel)):
        return f"{key + ': ' if key else ''}{message}."
    return f"{key!r} is {value!r}: {message[0].lower() + message[1:]}."


def _without_secrets(key: str, value: Any) -> Any:
    """`value`, or a stand-in where it looks like a secret, which must not be echoed."""
    return _Hidden() if _SECRET.search(f"{key} {value}") else value


_SECRET = re.compile(r"secret|password|passwd|token|credential|access_?key|api_?key|://[^/]*@", re.IGNORECASE)


class _Hidden:
    def __repr__(self) -> str:
        return "(hidden)"


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every leaf key of `model`, dotted, in the order of declaration."""
    for name, field in model.model_fields.items():
        below = nested_models(field.annotation)
        if not below:
            yield prefix + name
        for sub in below:
            yield from dotted_keys(sub, f"{prefix}{name}.")


def nested_models(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation such as `A | B | None`; none in a tuple, a mapping, or beside a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if getattr(annotation, "__origin__", None) in (tuple, list, dict):
        return []
    below = [nested_models(part) for part in getattr(annotation, "__args__", ()) if part is not NoneType]
    return [model for models in below for model in models] if all(below) else []
