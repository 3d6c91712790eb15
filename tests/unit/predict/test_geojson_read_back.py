"""What histill writes for QuPath, read back as annotations of the slide, gives the tiles what was predicted."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histill.config.annotations import Annotations
from histill.config.common import Storage
from histill.predict.geojson import heatmap_geojson
from histill.predict.slide_map import SlideMap
from histill.tiles.annotations import read_annotations, use_annotations
from histill.tiles.manifest import Manifest
from histill.tiles.slide_records import read_slides

pytestmark = pytest.mark.unit

CLASSES = ("stroma", "tumor", "fat: brown")


def slide_map(x: np.ndarray, y: np.ndarray, names: tuple[str, ...], **keys: Any) -> SlideMap:
    probabilities = np.array([[float(each == name) for each in CLASSES] for name in names], np.float32)
    return SlideMap("s", CLASSES, x, y, probabilities, names, **keys)


@pytest.mark.parametrize("side", [512.0, 64 * 0.5 / 0.4541, 256 * 1.013])
def test_each_tile_has_the_class_that_was_predicted(tmp_path: Path, side: float) -> None:
    """A sparse grid of tiles whose corners are rounded down, on a slide with an origin, and tiles without a class."""
    draw = random.Random(0)
    cells = draw.sample([(column, row) for column in range(17) for row in range(11)], 140)
    x, y = (np.array([1003 + int(cell[axis] * side) for cell in cells]) for axis in (0, 1))
    names = tuple(draw.choice([*CLASSES, ""]) for _ in cells)
    path = tmp_path / "s.geojson"
    path.write_bytes(heatmap_geojson(slide_map(x, y, names, side=side, origin=(1000, 640))))
    found = use_annotations(read_annotations(str(path), Storage()), Annotations(min_cover=0.9), (1000, 640))
    said = tuple(found.annotate(*corner, side, 64).label or "" for corner in zip(x.tolist(), y.tolist(), strict=True))
    assert said == names


def test_a_slide_with_bounds_is_cut_with_the_classes_of_its_heatmap(
    tmp_path: Path, write_leica: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    pixels = np.random.default_rng(0).normal((200, 110, 170), 8, (640, 768, 3)).clip(0, 255).astype(np.uint8)
    write_leica(tmp_path / "s.scn", pixels, left=1000, top=640)
    slides: dict[str, Any] = {"slide_mpp": 0.5, "mpp": 0.77}
    first = ingest_slides(tmp_path, "slide\ns.scn\n", slides=slides, output=str(tmp_path / "first"))
    (record,) = read_slides(first.manifest, Storage()).values()
    assert record.origin != (0, 0)
    rows = places(first.manifest)
    names = tuple(random.Random(1).choices(CLASSES, k=len(rows["x"])))
    drawn = slide_map(rows["x"], rows["y"], names, side=record.tile_side, origin=record.origin)
    (tmp_path / "s.geojson").write_bytes(heatmap_geojson(drawn))
    again = ingest_slides(
        tmp_path, "slide,annotations\ns.scn,s.geojson\n", slides={**slides, "annotations": {"min_cover": 0.9}}
    )
    found = places(again.manifest)
    assert (found["x"].tolist(), found["y"].tolist()) == (rows["x"].tolist(), rows["y"].tolist())
    assert tuple(found["label"]) == names
    assert len(names) > 20


def places(manifest: Manifest) -> dict[str, np.ndarray]:
    table = manifest.read(["x", "y", "label"], np.arange(manifest.header.tiles))
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def test_the_files_say_where_they_count_from(tmp_path: Path) -> None:
    """As the inverse assumes."""
    data = heatmap_geojson(slide_map(np.array([1000]), np.array([640]), ("tumor",), side=64.0, origin=(1000, 640)))
    assert json.loads(data)["slide"]["bounds"] == {"x": 1000, "y": 640}
    (tmp_path / "s.geojson").write_bytes(data)
    polygons = read_annotations(str(tmp_path / "s.geojson"), Storage()).locate((1000, 640))
    assert polygons.boxes.T.tolist() == [[1000, 640, 1064, 704]]
