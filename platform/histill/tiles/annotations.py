"""Annotations of a slide: the polygons of a file, and the labels and masks that they give to tiles."""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from histill.config.annotations import Annotations
from histill.config.common import Storage
from histill.errors import InputError
from histill.tiles.asap_annotations import read_asap
from histill.tiles.geojson_annotations import read_geojson
from histill.tiles.masks import IGNORED
from histill.tiles.polygons import UNKNOWN, PolygonError, PolygonList, Polygons, rasterize
from histill.tiles.sources import Unreadable, read_file

NAMED = 8  # classes that a sentence lists
_HEAD = 1024  # bytes in which a file begins


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """The polygons of a file, as its tool counts pixels, and what else it holds."""

    uri: str
    sha256: str
    classes: tuple[str | None, ...]  # names; the polygons' kinds are their numbers
    polygons: Polygons
    left_out: Mapping[str, int]  # numbers of points, lines and the like
    from_bounds: bool  # whether pixels are counted from the corner of OpenSlide's bounds, else of level 0

    def count_classes(self) -> Counter[str | None]:
        """The number of polygons of each class."""
        counts = np.bincount(self.polygons.kinds, minlength=len(self.classes))
        return Counter(dict(zip(self.classes, counts.tolist(), strict=True)))

    def locate(self, origin: tuple[int, int]) -> Polygons:
        """The polygons in pixels of level 0 of a slide whose bounds begin at `origin`."""
        if not self.from_bounds or origin == (0, 0):
            return self.polygons
        return replace(self.polygons, corners=self.polygons.corners + origin)


def read_annotations(uri: str, storage: Storage) -> AnnotationFile:
    """Read a file of QuPath (GeoJSON) or ASAP (XML).

    Raises Unreadable when it does not exist, is of another kind, or holds no polygon but something else, and InputError
    when the storage refuses.
    """
    data, found = read_file(uri, storage), PolygonList()
    digest, is_xml = hashlib.sha256(data).hexdigest(), data[:_HEAD].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"
    try:
        if is_xml:
            left_out = read_asap(data, found)
        else:
            text = data.decode("utf-8-sig")
            del data  # which may be hundreds of megabytes
            left_out = read_geojson(text, found)
        polygons = found.finish()
    except UnicodeDecodeError:
        raise _refuse(uri, "is neither GeoJSON nor XML: it is no text in UTF-8") from None
    except PolygonError as reason:
        raise _refuse(uri, str(reason)) from None
    if left_out and not len(polygons):
        raise _refuse(uri, f"holds no polygon, but {_list_counts(left_out)}")
    return AnnotationFile(uri, digest, tuple(found.classes), polygons, left_out, from_bounds=not is_xml)


def _refuse(uri: str, said: str) -> Unreadable:
    return Unreadable(
        f"the annotations {uri}: the file {said}; export the polygons again as GeoJSON (QuPath) or XML (ASAP).",
        code="annotations-unreadable",
    )


def _list_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())[:NAMED])


@dataclass(frozen=True, eq=False)
class TileAnnotation:
    """What a tile is labeled with."""

    label: str | None
    mask: bytes | None  # PNG of class indices
    class_pixels: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class SlideAnnotations:
    """The polygons that are drawn on a slide's tiles, and those that bound what is cut, in pixels of level 0."""

    rules: Annotations
    labels: tuple[str, ...]  # the kinds of the drawn polygons are their numbers
    drawn: Polygons
    regions: Polygons | None  # None: the whole slide

    def within(self, left: float, top: float, right: float, bottom: float) -> "SlideAnnotations":
        """The same for tiles within a rectangle, which looks at fewer polygons."""
        box = left, top, right, bottom
        return replace(
            self, drawn=self.drawn.within(*box), regions=None if self.regions is None else self.regions.within(*box)
        )

    def includes(self, x: float, y: float, side: float) -> bool:
        """Whether the center of a tile at (x, y) lies in a region."""
        if self.regions is None:
            return True
        near = self.regions.within(x, y, x + side, y + side)
        return bool(rasterize(near, x, y, side, 1)[0, 0] != UNKNOWN)

    def annotate(self, x: int, y: int, side: float, px: int) -> TileAnnotation:
        """The label and the mask of a tile of `px` pixels that covers `side` level-0 pixels from (x, y) on."""
        rules = self.rules
        blank = UNKNOWN if rules.unannotated is None else self.labels.index(rules.unannotated)
        near = self.drawn.within(x, y, x + side, y + side)
        if blank == UNKNOWN and not len(near):
            return TileAnnotation(None, None, {})
        kinds = rasterize(near, x, y, side, px, blank).ravel()
        counts = np.bincount(kinds[kinds != UNKNOWN], minlength=len(self.labels))
        if not counts.any():
            return TileAnnotation(None, None, {})
        most, label = int(counts.argmax()), None
        if rules.min_cover is not None and counts[most] >= rules.min_cover * px**2:
            label = self.labels[most]
        if rules.masks is None:
            return TileAnnotation(label, None, {})
        pixels = {kind: int(counts[kind]) for kind in np.flatnonzero(counts).tolist()}
        if unknown := px**2 - int(counts.sum()):
            pixels[IGNORED] = unknown
        return TileAnnotation(label, _encode_mask(kinds.reshape(px, px)), pixels)


def _encode_mask(kinds: np.ndarray) -> bytes:
    """The PNG of a mask, with IGNORED where nothing is known."""
    from PIL import Image

    encoded = io.BytesIO()
    with Image.fromarray(np.where(kinds == UNKNOWN, IGNORED, kinds).astype(np.uint8)) as picture:
        picture.save(encoded, "PNG", compress_level=1)  # in half of the time, and small anyway
    return encoded.getvalue()


def label_of(name: str | None, rules: Annotations) -> str | None:
    """The label of an annotated class; "" if its area is unknown, None if it is left out.

    A class derived from a named one, `Tumor: Positive` from `Tumor`, has its label unless it is named itself.
    """
    if name is None:
        return None
    if rules.classes is None:
        return None if name in rules.regions else name
    for each in (name, name.partition(":")[0].strip()):
        if each in rules.classes:
            return rules.classes[each] or ""
    return None


def use_annotations(file: AnnotationFile, rules: Annotations | None, origin: tuple[int, int]) -> SlideAnnotations:
    """Apply `rules` to a file of a slide whose OpenSlide bounds begin at `origin`; None: each polygon is a region.

    Raises InputError for a label without a place in masks.
    """
    polygons = file.locate(origin)
    if rules is None:
        nothing = polygons.take(np.empty(0, np.int64))
        return SlideAnnotations(Annotations(), (), nothing, _as_regions(polygons))
    said = [label_of(name, rules) for name in file.classes]
    check_labels(said, rules, file.uri)
    labels = rules.masks or tuple(sorted(set(filter(None, (*said, rules.unannotated)))))
    places = {label: number for number, label in enumerate(labels)}
    drawn = _of_classes(polygons, [label is not None and rules.draws for label in said])
    kinds = np.array([places.get(label or "", UNKNOWN) for label in said], np.int64)
    inside = _of_classes(polygons, [name in rules.regions for name in file.classes])
    regions = _as_regions(inside) if rules.regions else None
    return SlideAnnotations(rules, labels, replace(drawn, kinds=kinds[drawn.kinds]), regions)


def _of_classes(polygons: Polygons, chosen: Sequence[bool]) -> Polygons:
    """The polygons whose kind is the number of a chosen class."""
    return polygons.take(np.flatnonzero(np.array(chosen, bool)[polygons.kinds]))


def _as_regions(polygons: Polygons) -> Polygons:
    """The polygons, with a kind that is not UNKNOWN."""
    return replace(polygons, kinds=np.zeros(len(polygons), np.int64))


def check_labels(labels: Sequence[str | None], rules: Annotations, uri: str) -> None:
    """Raise InputError for a label of the file `uri` without a place in masks."""
    missing = sorted(label for label in labels if label and rules.masks and label not in rules.masks)
    if missing:
        raise InputError(
            f"the annotations {uri} have the class {missing[0]!r}, which slides.annotations.masks does not list; give "
            "it a place, or name the classes to use in slides.annotations.classes.",
            code="annotations-class",
        )


def explain_outside(slide: str, file: AnnotationFile, rules: Annotations | None) -> str:
    """One sentence on a slide with tissue of which no tile lies in a region of interest."""
    named = "" if rules is None else f" of the classes {', '.join(rules.regions)}"
    counts = file.count_classes().items()
    inside = sum(count for name, count in counts if rules is None or name in rules.regions)
    where = f"no tile with tissue has its center in one of the {inside} polygons" if inside else "there is no polygon"
    return f"slide {slide}: {where}{named} in {file.uri}; draw one around tissue, or leave the slide out."
