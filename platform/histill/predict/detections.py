"""Write a slide's objects, such as nuclei, as detections that QuPath imports."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from histill.cluster.parallel import map_tasks
from histill.cluster.progress import track
from histill.config.common import Workers
from histill.config.objects import Objects
from histill.objects.blocks import BLOCK_PX, MARGIN_UM, Object, find_in_block, window_of_block
from histill.objects.instances import Instances
from histill.objects.watershed import separate_objects
from histill.predict.geojson import class_colors, describe_place
from histill.predict.slide_pixels import SlidePixels, TilePlaces
from histill.predict.slides import PredictedSlide
from histill.storage.control import write_bytes
from histill.storage.uris import join

DETECTIONS, DETECTION_ENDINGS = "detections", (".geojson",)
_PROBABILITY, _AREA = "Detection probability", "Area µm^2"  # as QuPath's own detections have them
_BLOCKS_AT_ONCE = 32  # of a slide: about half a minute of work
Block = tuple[int, int]  # its column and row


@dataclass(frozen=True)
class _Part:
    """Some blocks of a slide."""

    slide: PredictedSlide
    number: int
    blocks: tuple[Block, ...]
    places: TilePlaces  # of the tiles that they are read from


@dataclass(frozen=True)
class _Found:
    """The objects of a part."""

    slide: str
    number: int
    features: bytes  # GeoJSON, separated by commas
    counts: Counter[str]  # by class


def write_detections(slides: Sequence[PredictedSlide], workers: Workers) -> int:
    """Write each slide's objects as GeoJSON; return for how many: the others have no decodable tile.

    Raises InputError when some predictions are missing.
    """
    parts = [part for slide in slides for part in _divide(slide)]
    left, found = Counter(part.slide.slide for part in parts), dict[str, list[_Found]]()
    by_name = {slide.slide: slide for slide in slides}
    done = map_tasks(_find, parts, threads=1 if workers.in_process else None)
    for each in track(done, len(parts), title=DETECTIONS, unit="parts"):
        found.setdefault(each.slide, []).append(each)
        if len(found[each.slide]) == left[each.slide]:
            _write(by_name[each.slide], found.pop(each.slide))
    return len(left)


def _divide(slide: PredictedSlide) -> Iterator[_Part]:
    places = slide.find_places()
    if places is None:
        return
    pixels = slide.lay_out(places)
    blocks = pixels.blocks(BLOCK_PX)
    for number, first in enumerate(range(0, len(blocks), _BLOCKS_AT_ONCE)):
        part = tuple(blocks[first : first + _BLOCKS_AT_ONCE])
        reached = [pixels.within(*window_of_block(*block, _margin(pixels))) for block in part]
        yield _Part(slide, number, part, places.take(np.unique(np.concatenate(reached))))


def _find(part: _Part) -> _Found:
    slide, pixels = part.slide, part.slide.read_pixels(part.places)
    assert slide.objects is not None
    found = list(find_slide_objects(pixels, slide.objects, part.blocks))
    features = b",".join(json.dumps(each).encode() for each in list_features(found, slide, pixels))
    return _Found(slide.slide, part.number, features, Counter(slide.classes[each.class_index] for each in found))


def _write(slide: PredictedSlide, found: Sequence[_Found]) -> None:
    """Write a slide's objects as a FeatureCollection that says in `slide` what its coordinates are."""
    counts = sum((each.counts for each in found), Counter[str]())
    about = describe_place(slide.slide, slide.origin, None if slide.record is None else slide.record.mpp)
    about |= {"objects": {name: counts[name] for name in slide.classes[1:]}}
    ordered = sorted(found, key=lambda each: each.number)
    features = b",".join(each.features for each in ordered if each.features)
    head = b'{"type": "FeatureCollection", "slide": %b, "features": [' % json.dumps(about).encode()
    target = join(slide.uri, DETECTIONS, slide.file + DETECTION_ENDINGS[0])
    write_bytes(target, head + features + b"]}", slide.storage)


def find_slide_objects(pixels: SlidePixels, objects: Objects, blocks: Sequence[Block]) -> Iterator[Object]:
    """The objects of some of a slide's blocks, the same ones however it was cut into tiles."""

    def separate(*window: int) -> Instances:
        found = separate_objects(pixels.window(*window), boundary=pixels.outputs.boundary, mpp=pixels.mpp)
        return found.keep(found.areas * pixels.mpp**2 >= objects.min_um2)

    for column, row in blocks:
        yield from find_in_block(separate, column, row, _margin(pixels))


def _margin(pixels: SlidePixels) -> int:
    return ceil(MARGIN_UM / pixels.mpp)


def list_features(found: Sequence[Object], slide: PredictedSlide, pixels: SlidePixels) -> Iterator[dict[str, Any]]:
    """A GeoJSON feature for each object: a polygon, its class, probability and area, as QuPath exports detections.

    Coordinates are level-0 pixels relative to the corner of OpenSlide's bounds, as in QuPath.
    """
    colors = class_colors(slide.classes)
    kinds = [{"name": name, "color": colors[name]} for name in slide.classes]
    for each in found:
        ring = np.round(each.outline * pixels.scale - slide.origin, 2).tolist()
        properties = {
            "objectType": "detection",
            "classification": kinds[each.class_index],
            "measurements": {
                _PROBABILITY: round(each.probability, 4),
                _AREA: round(each.area * pixels.mpp**2, 3),
            },
        }
        geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        yield {"type": "Feature", "geometry": geometry, "properties": properties}
