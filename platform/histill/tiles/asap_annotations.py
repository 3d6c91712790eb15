"""Read polygons and their groups from the XML that ASAP writes."""

from collections import Counter
from xml.parsers import expat

from histill.tiles.index import plain
from histill.tiles.polygons import PolygonError, PolygonList

_OUTLINES = ("Polygon", "Rectangle", "Spline")  # of a spline, its control points
_NO_GROUP = ("", "None")


class _Reader:
    """Takes the elements as they are parsed, so that memory holds one annotation at a time."""

    def __init__(self, into: PolygonList) -> None:
        self.left_out: Counter[str] = Counter()
        self._into = into
        self._number = 0
        self._kind, self._group = "", ""
        self._corners: list[tuple[int, float, float]] = []
        self._is_asap = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._is_asap and name != "ASAP_Annotations":
            raise PolygonError(f"is no XML of ASAP: it begins with {name!r:.40} instead of 'ASAP_Annotations'")
        self._is_asap = True
        if name == "Annotation":
            self._number += 1
            self._kind, self._group = attributes.get("Type", ""), plain(attributes.get("PartOfGroup", ""))
            self._corners = []
        elif name == "Coordinate":
            try:
                order = int(attributes.get("Order", len(self._corners)))
                self._corners.append((order, float(attributes["X"]), float(attributes["Y"])))
            except (KeyError, ValueError):
                raise PolygonError(
                    f"cannot be used: its annotation {self._number} has a coordinate without numbers X and Y"
                ) from None

    def end(self, name: str) -> None:
        if name != "Annotation":
            return
        if self._kind not in _OUTLINES:
            self.left_out[self._kind or "no type"] += 1
        elif self._corners:
            ring = [(x, y) for _, x, y in sorted(self._corners, key=lambda corner: corner[0])]
            self._into.add(None if self._group in _NO_GROUP else self._group, [ring])

    def refuse_doctype(self, *_: object) -> None:
        raise PolygonError("has a DOCTYPE, which may define entities and is refused; ASAP writes none")


def read_asap(data: bytes, into: PolygonList) -> Counter[str]:
    """Add the polygons of `data`, a file; their class is the group. Return what was left out, by ASAP's type.

    Raises PolygonError for anything else, and for a DOCTYPE, so that no entity is ever expanded.
    """
    reader, parser = _Reader(into), expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.StartDoctypeDeclHandler = reader.refuse_doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise PolygonError(f"is no XML: {expat.errors.messages[error.code]} at line {error.lineno}") from None
    return reader.left_out
