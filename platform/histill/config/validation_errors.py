"""Describe pydantic's errors in a configuration in sentences that name the key, the value and the remedy."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from histill.config.keys import dotted_keys, keys_of_entry, nearest_key, required_keys, sections
from histill.config.redact import HIDDEN, holds_credentials, names_secret, redact
from histill.errors import ErrorCode

_MOST_SHOWN = 120  # characters of a value
_KEY = re.compile(r"[^\W\d][\w-]{0,31}(\.[\w-]{1,32})*")
_CODES: dict[str, ErrorCode] = {
    "string_type": "config-unquoted",
    "extra_forbidden": "config-unknown-key",
    "missing": "config-missing-key",
}
_EXPECTED = {
    "tuple_type": "a list such as [a, b] was expected",
    "dict_type": "keys and values such as {a: b} were expected",
    "bool_type": "true or false was expected",
    "finite_number": "a finite number was expected",
    "string_pattern_mismatch": "1 to 100 letters, digits, '.', '-' and '_' were expected, a letter or digit first",
}


def describe_errors(model: type[BaseModel], faults: Sequence[Any], *, in_python: bool = False) -> str:
    """The faults of a ValidationError, one sentence each; consequences of other faults are left out.

    What is missing is asked for as an argument of a call `in_python`, else in the file or on the command line.
    """
    faults = [fault for fault in faults if not _follows(fault, faults)]
    texts = [fault for fault in faults if fault["type"] == "string_type"]
    by_list: dict[tuple[Any, ...], list[Any]] = {}
    for fault in texts:
        by_list.setdefault(fault["loc"][:-1] if _in_list(fault) else fault["loc"], []).append(fault)
    said = [_no_names(loc, [fault["input"] for fault in found], in_python) for loc, found in by_list.items()]
    return redact(" ".join(said + [_sentence(model, fault, in_python) for fault in faults if fault not in texts]))


def classify_errors(faults: Sequence[Any]) -> ErrorCode:
    """The code of the fault that `describe_errors` tells first."""
    faults = [fault for fault in faults if not _follows(fault, faults)]
    first = next((fault for fault in faults if fault["type"] == "string_type"), faults[0])
    if _is_conflict(first):
        return "config-conflict"
    if first["type"] == "string_type" and not _is_plain(first["input"]):
        return "config-wrong-value"
    return _CODES.get(first["type"], "config-wrong-value")


def _is_conflict(fault: Any) -> bool:
    """Whether the fault is not one key's: keys exclude, or need, one another."""
    return fault["type"] == "value_error" and (not fault["loc"] or isinstance(fault["input"], Mapping | BaseModel))


def _follows(fault: Any, faults: Sequence[Any]) -> bool:
    """Whether the fault is a list reported as too short because elements of it were refused."""
    where = fault["loc"]
    return fault["type"] == "too_short" and any(
        other["loc"][:-1] == where and isinstance(other["loc"][-1], int) for other in faults if other["loc"]
    )


def _in_list(fault: Any) -> bool:
    return len(fault["loc"]) > 1 and isinstance(fault["loc"][-1], int)


def _no_names(loc: tuple[Any, ...], values: list[Any], in_python: bool) -> str:
    """The sentence for values that should be strings but that YAML, without quotes, read as something else."""
    key = ".".join(map(str, loc))
    described = list(dict.fromkeys(_describe(key, value, in_python) for value in values))
    listed = described[0] if len(described) == 1 else f"{', '.join(described[:-1])} and {described[-1]}"
    mend = "put it in quotes as you typed it" if len(values) == 1 else "put each in quotes as you typed it"
    if in_python or not all(map(_is_plain, values)):
        mend = "give a text" if len(values) == 1 else "give texts"
    return f"{key!r} holds {listed}, and text was expected; {mend}."


def _is_plain(value: Any) -> bool:
    """Whether YAML read the value from a word or a number without quotes."""
    return value is None or isinstance(value, bool | int | float)


def _describe(key: str, value: Any, in_python: bool) -> str:
    match value:
        case bool() | None if in_python:
            return str(value)
        case bool():
            words = "yes, on and true" if value else "no, off and false"
            return f"{str(value).lower()} (so YAML reads {words})"
        case None:
            return "null (so YAML reads null, ~ and nothing)"
        case int() | float():
            return f"the number {HIDDEN if names_secret(key) else value}"
    if isinstance(value, Mapping):
        return "keys and values"
    return "a list" if isinstance(value, list | tuple) else f"an object of {type(value).__name__}"


def _sentence(model: type[BaseModel], fault: Any, in_python: bool) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    kind, given = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        return _unknown(model, fault["loc"], given)
    if kind == "missing" and (below := _below(model, fault["loc"])):
        needed = [name for name in required_keys(model) if name.startswith(f"{key}.")]
        if len(needed) != 1:
            where = "in the call" if in_python else "in the file or on the command line"
            return f"{key!r} is missing; set {below}, {where}."
        key = needed[0]
    if kind == "missing" and in_python:
        return f"{key!r} is missing; give {_as_argument(key)} in the call."
    if kind == "missing":
        return f"{key!r} is missing; set it in the file or as {key}=... on the command line."
    message = fault["msg"].removeprefix("Value error, ").rstrip(".")
    if _is_conflict(fault):
        return f"{key + ': ' if key else ''}{message}."
    shown = _show(key, given)
    if isinstance(given, Mapping) and given.keys() & _range_keys(model):
        return f"{key!r} is a range to draw from, and one value was expected; write the range as space.{key}."
    if kind == "model_type":
        below = _below(model, fault["loc"])
        message = f"it has keys of its own; {f'set {below}' if below else 'write {key: value}'}"
    if kind == "too_short":
        message = f"a list of {fault['ctx']['min_length']} or more was expected"
    message = _EXPECTED.get(kind, message)
    return f"{key!r} is {shown}: {message[0].lower() + message[1:]}."


def _as_argument(key: str) -> str:
    """`data={"tiles": ...}` for `data.tiles`."""
    name, *below = key.split(".")
    value = "..."
    for part in reversed(below):
        value = f'{{"{part}": {value}}}'
    return f"{name}={value}"


def is_shown(key: str) -> bool:
    """Whether a wrong key looks like a key, so that it may be repeated; a secret given in its place may not."""
    return _KEY.fullmatch(key) is not None and not holds_credentials(key)


def _unknown(model: type[BaseModel], loc: tuple[Any, ...], given: Any) -> str:
    key = ".".join(map(str, loc))
    names = _names(model, loc)
    value = given if given is None or (isinstance(given, bool | int | float) and not names_secret(key)) else None
    named = f"{_show_key(key)}{f' (value {value!r})' if value is not None else ''}"
    if key in names or key in sections(names):
        head, _, rest = key.partition(".")
        return f"{named} is not a key as it stands; write {head}, and {rest.replace('.', ', and ')} below it."
    wrong = list(_leaves(key, given))
    near = [found for found in (nearest_key(each, names) for each in wrong) if found is not None]
    near = near or [found for found in [nearest_key(key, names)] if found is not None]
    if len(near) > 1 and len(above := {found.rpartition(".")[0] for found in near}) == 1 and (section := above.pop()):
        near = [section]
    if not near:
        section = key.rpartition(".")[0]
        below = [name for name in names if name.startswith(f"{section}.")]
        return f"{named} is not a key; the keys {'there ' if below else ''}are {', '.join(below or names)}."
    return f"{named} is not a key; did you mean {' and '.join(map(repr, dict.fromkeys(near)))}?"


def _below(model: type[BaseModel], loc: tuple[Any, ...]) -> str:
    """The first keys below `loc`; empty if it has none."""
    below = [name for name in _names(model, loc) if name.startswith(f"{'.'.join(map(str, loc))}.")]
    return f"{', '.join(below[:3])}{' or others below it' if len(below) > 3 else ''}"


def _names(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The dotted keys of `model`, and those of the entry of a mapping that `loc` is of, by its own name."""
    return [*dotted_keys(model), *keys_of_entry(model, loc)]


def _range_keys(model: type[BaseModel]) -> set[str]:
    """The keys of a sweep's ranges, whatever their key; none of another job."""
    return {each.rpartition(".")[2] for each in keys_of_entry(model, ("space", ""))}


def _leaves(key: str, value: Any) -> Iterator[str]:
    """The dotted keys below `key`, or itself."""
    if not isinstance(value, Mapping) or not value:
        yield key
        return
    for name, item in value.items():
        yield from _leaves(f"{key}.{name}", item)


def _show_key(key: str) -> str:
    return repr(key) if is_shown(key) else "one of the names given"


def _show(key: str, value: Any) -> str:
    """A value for use in a sentence: never a secret, and shortened if long."""
    if isinstance(value, BaseModel | Mapping):
        return "a mapping"
    text = repr(list(value) if isinstance(value, tuple) else value)
    if names_secret(f"{key} {text}") or redact(text) != text:
        return HIDDEN
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 4]} ..."
