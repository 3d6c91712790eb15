"""Read polygons and their classes from GeoJSON, as QuPath writes it, one feature after the other."""

import json
import re
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

from histill.tiles.index import plain
from histill.tiles.polygons import PolygonError, PolygonList

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_NAMES = ": "  # between a class and those derived from it, in QuPath's name of the latter


def read_geojson(text: str, into: PolygonList) -> Counter[str]:
    """Add the polygons of a FeatureCollection, a list of features or a single one; return what was left out, by kind.

    Memory holds one feature at a time. Raises PolygonError, which names the feature, for anything else.
    """
    left_out: Counter[str] = Counter()
    try:
        for number, feature in enumerate(_iterate_features(text), 1):
            if not isinstance(feature, dict) or feature.get("type") != "Feature":
                raise PolygonError(f"is no GeoJSON: its item {number} is no feature")
            try:
                name = _class_of(feature.get("properties") or {})
                _add_geometry(feature.get("geometry"), name, into, left_out)
            except (PolygonError, AttributeError, TypeError) as error:
                said = error if isinstance(error, PolygonError) else "has another form than GeoJSON's"
                raise PolygonError(f"cannot be used: its feature {number} {said}") from None
    except json.JSONDecodeError as error:
        raise PolygonError(f"is no GeoJSON: {error.msg.lower()} at line {error.lineno}") from None
    except RecursionError:
        raise PolygonError("is no GeoJSON: it is nested too deeply") from None
    return left_out


def _class_of(properties: dict[str, Any]) -> str | None:
    """The class: `classification` is its name, or an object with `name`, or with `names` of derived classes."""
    said = properties.get("classification")
    if isinstance(said, dict):
        names = said.get("names")
        said = _NAMES.join(map(str, names)) if isinstance(names, list) else said.get("name")
    if said is not None and not isinstance(said, str):
        raise PolygonError(f"has a classification that is no name ({said!r:.40})")
    return plain(said or "") or None


def _add_geometry(geometry: Any, name: str | None, into: PolygonList, left_out: Counter[str]) -> None:
    kind = (geometry or {}).get("type")
    if kind == "GeometryCollection":
        for each in geometry["geometries"]:
            _add_geometry(each, name, into, left_out)
    elif kind in ("Polygon", "MultiPolygon"):
        parts = geometry.get("coordinates") or []
        for rings in [parts] if kind == "Polygon" else parts:
            if rings and rings[0]:
                into.add(name, rings)
    else:
        left_out[str(kind or "no geometry")] += 1


def _iterate_features(text: str) -> Iterator[Any]:
    """The features of a document, decoded one by one."""
    at = _skip_space(text, 0)
    if text[at : at + 1] == "[":
        end = yield from _iterate_items(text, at)
    elif text[at : at + 1] == "{":
        end = yield from _iterate_collection(text, at)
    else:
        raise json.JSONDecodeError("Expecting an object or a list", text, at)
    if _skip_space(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _iterate_collection(text: str, at: int) -> Generator[Any, None, int]:
    """The items of the member `features` of an object, or the object if it is a feature; returns where it ends."""
    others: dict[str, Any] = {}
    found, at = False, _skip_space(text, at + 1)
    while text[at : at + 1] != "}":
        key, at = _DECODER.raw_decode(text, at)
        at = _skip_space(text, _expect(text, at, ":"))
        if key == "features" and text[at : at + 1] == "[":
            found, at = True, (yield from _iterate_items(text, at))
        else:
            others[str(key)], at = _DECODER.raw_decode(text, at)
        at = _skip_comma(text, at, "}")
    if not found:
        if others.get("type") != "Feature":
            raise PolygonError("is no GeoJSON: it is no feature and has no list of features")
        yield others
    return at + 1


def _iterate_items(text: str, at: int) -> Generator[Any, None, int]:
    """The items of a list that begins at `at`; returns where it ends."""
    at = _skip_space(text, at + 1)
    while text[at : at + 1] != "]":
        item, at = _DECODER.raw_decode(text, at)
        yield item
        at = _skip_comma(text, at, "]")
    return at + 1


def _skip_comma(text: str, at: int, end: str) -> int:
    """Where the next item is, or the `end` of the items."""
    at = _skip_space(text, at)
    return at if text[at : at + 1] == end else _skip_space(text, _expect(text, at, ","))


def _expect(text: str, at: int, sign: str) -> int:
    at = _skip_space(text, at)
    if text[at : at + 1] != sign:
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, at)
    return at + 1


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
