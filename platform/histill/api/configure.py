"""Turn what a caller of the API gives, a configuration, a file or keys, into one validated configuration."""

from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from histill.config.base import Strict
from histill.config.load import OneOf, read_yaml, validate
from histill.errors import InputError

if TYPE_CHECKING:
    from histill.api.tile_set import TileSet

C = TypeVar("C", bound=Strict)
Given = str | Path | Mapping[str, Any] | Strict | None
"""A YAML file, a mapping of keys, a configuration, or nothing."""


def configure(
    model: type[C] | OneOf[C], given: Given, keys: Mapping[str, Any], *, local: bool = False, source: str
) -> C:
    """The configuration `given` with `keys` over it; sections are merged, and `**{"data.tiles": uri}` sets one key.

    Args:
        model: the configuration's class, or several.
        given: where to begin.
        keys: paths, tile sets and what another job returned may stand for their addresses.
        local: work in this process, without Ray: `workers.count` becomes 0.
        source: what error messages name.

    Raises:
        InputError: a key is unknown, missing or wrong.
    """
    if isinstance(given, Strict) and not keys and not local and not isinstance(model, OneOf):
        if isinstance(given, model):
            return given
        raise InputError(
            f"{source} was given a {type(given).__name__}; give it a {model.__name__}.", code="argument-wrong"
        )
    data = _merge(_read(given), _nest(keys))
    chosen = model.chosen(data) if isinstance(model, OneOf) else model
    if local and "workers" in chosen.model_fields:
        data = _merge(data, _at_home(chosen))
    return validate(chosen, data, source, in_python=True)


def _read(given: Given) -> Mapping[str, Any]:
    match given:
        case None:
            return {}
        case Strict():
            return given.model_dump(exclude_unset=True)
        case str() | Path():
            return read_yaml(str(given))
    return make_plain(given)


def _nest(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings for the sections that dotted keys name."""
    nested: dict[str, Any] = {}
    for key, value in keys.items():
        below = make_plain(value)
        for part in reversed(key.split(".")):
            below = {part: below}
        nested = _merge(nested, below)
    return nested


def make_plain(value: Any) -> Any:
    """Return `value` with addresses in the place of paths, tile sets, and what jobs have made."""
    match value:
        case Mapping():
            return {key: make_plain(item) for key, item in value.items()}
        case list() | tuple():
            return [make_plain(item) for item in value]
        case Path():
            return str(value)
        case Strict():
            return value.model_dump(exclude_unset=True)
        case Integral():  # numpy's numbers, too
            return value if isinstance(value, int) else int(value)
        case Real():
            return value if isinstance(value, float) else float(value)
    uri: TileSet | Any = getattr(value, "uri", value)
    return uri


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with the keys of `over`, section by section."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _at_home(model: type[Strict]) -> dict[str, Any]:
    """The keys that keep a job in its own process; a job that does so by default has no workers to set."""
    optional = model.model_fields["workers"].default is None
    return {"workers": None} if optional else {"workers": {"count": 0}}
