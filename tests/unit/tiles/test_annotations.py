"""Annotations of slides: files of QuPath and ASAP, labels by area, masks, regions of interest, and what is refused."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from histill.config.annotations import Annotations
from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.errors import InputError
from histill.tiles.annotations import label_of, read_annotations, use_annotations
from histill.tiles.slide_records import read_slides

pytestmark = pytest.mark.unit


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def feature(name: Any, *rings: list, kind: str = "Polygon") -> dict[str, Any]:
    properties = {"objectType": "annotation"}
    if name is not None:
        properties["classification"] = name if isinstance(name, dict) else {"name": name, "color": [200, 0, 0]}
    coordinates = list(rings) if kind == "Polygon" else rings[0]
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def write(path: Path, *features: dict[str, Any]) -> str:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return str(path)


def rules(**keys: Any) -> Annotations:
    return validate(Annotations, keys, "test")


def counts(uri: str) -> dict[str | None, int]:
    return dict(read_annotations(uri, Storage()).count_classes())


@pytest.mark.parametrize(
    ("classification", "name"),
    [
        ({"name": "Tumor", "color": [200, 0, 0]}, "Tumor"),
        ({"name": " Tumor", "colorRGB": -3670016}, "Tumor"),
        ({"names": ["Tumor", "Positive"], "color": [200, 0, 0]}, "Tumor: Positive"),
        ("Tumor", "Tumor"),
        ({"name": "Tumeur e\u0301tendue"}, "Tumeur \xe9tendue"),
        ({"name": ""}, None),
        ({}, None),
        (None, None),
    ],
)
def test_spellings_of_a_class(tmp_path: Path, classification: Any, name: str | None) -> None:
    one = feature(None, box(0, 0, 10, 10))
    one["properties"]["classification"] = classification
    assert counts(write(tmp_path / "a.geojson", one)) == {name: 1}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", ["collection", "list", "single", "others first"])
def test_forms_of_a_document(tmp_path: Path, form: str, indent: int | None) -> None:
    one = feature("Tumor", box(0, 0, 10, 10))
    document = {
        "collection": {"type": "FeatureCollection", "features": [one, one]},
        "list": [one, one],
        "single": one,
        "others first": {"slide": {"features": [1, {"a": "]}"}]}, "features": [one, one], "after": [[]]},
    }[form]
    path = tmp_path / "a.geojson"
    path.write_text("\ufeff" + json.dumps(document, indent=indent), encoding="utf-8")
    assert counts(str(path)) == {"Tumor": 1 if form == "single" else 2}


def test_geometries_of_all_kinds(tmp_path: Path) -> None:
    several = feature("A", [[box(0, 0, 10, 10), box(2, 2, 8, 8)], [box(20, 0, 30, 10)]], kind="MultiPolygon")
    collected = feature("B")
    collected["geometry"] = {"type": "GeometryCollection", "geometries": [several["geometry"], {"type": "Point"}]}
    empty, nothing = feature("C"), {"type": "Feature", "geometry": None, "properties": None}
    line = feature("A", [[0, 0], [5, 5]], kind="LineString")
    file = read_annotations(write(tmp_path / "a.geojson", several, collected, empty, nothing, line), Storage())
    assert dict(file.count_classes()) == {"A": 2, "B": 2}
    assert dict(file.left_out) == {"Point": 1, "LineString": 1, "no geometry": 1}
    found = use_annotations(file, rules(classes={"A": "a"}, masks=["a"]), (0, 0)).annotate(0, 0, 32, 32)
    assert found.class_pixels == {0: 100 - 36 + 100, 255: 32 * 32 - 164}


ASAP = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
<Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58"><Coordinates>
<Coordinate Order="1" X="64" Y="0" /><Coordinate Order="0" X="0" Y="0" />
<Coordinate Order="2" X="64" Y="64.0" /><Coordinate Order="3" X="0" Y="64" /></Coordinates></Annotation>
<Annotation Name="Annotation 1" Type="Rectangle" PartOfGroup="Hole" Color="#F4FA58"><Coordinates>
<Coordinate Order="0" X="16" Y="16" /><Coordinate Order="1" X="48" Y="16" />
<Coordinate Order="2" X="48" Y="48" /><Coordinate Order="3" X="16" Y="48" /></Coordinates></Annotation>
<Annotation Name="Annotation 2" Type="Dot" PartOfGroup="None" Color="#F4FA58"><Coordinates>
<Coordinate Order="0" X="1" Y="1" /></Coordinates></Annotation>
</Annotations><AnnotationGroups>
<Group Name="Tumor" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>
<Group Name="Hole" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>
</AnnotationGroups></ASAP_Annotations>
"""


@pytest.mark.parametrize(("hole", "expected"), [("stroma", {0: 3072, 1: 1024}), (None, {0: 3072, 255: 1024})])
def test_asap_groups_and_holes(tmp_path: Path, hole: str | None, expected: dict[int, int]) -> None:
    path = tmp_path / "a.xml"
    path.write_text(ASAP, encoding="utf-8")
    file = read_annotations(str(path), Storage())
    assert dict(file.count_classes()) == {"Tumor": 1, "Hole": 1}
    assert dict(file.left_out) == {"Dot": 1}
    given = rules(classes={"Tumor": "tumor", "Hole": hole}, masks=["tumor", "stroma"], min_cover=0.75)
    found = use_annotations(file, given, (1000, 500)).annotate(0, 0, 64, 64)  # ASAP does not know of bounds
    assert found.class_pixels == expected
    assert found.label == "tumor"
    assert found.mask is not None
    mask = np.asarray(Image.open(io.BytesIO(found.mask)))
    assert (mask[16:48, 16:48] == (255 if hole is None else 1)).all()
    assert (mask[:16] == 0).all()


def test_a_bomb_of_entities_is_refused_unread(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE b [<!ENTITY a "aaaa"><!ENTITY b SYSTEM "file:///etc/passwd">]>'
    path = tmp_path / "a.xml"
    path.write_text(ASAP.replace("<ASAP_Annotations>", f"{bomb}<ASAP_Annotations>", 1), encoding="utf-8")
    with pytest.raises(InputError, match="has a DOCTYPE") as error:
        read_annotations(str(path), Storage())
    assert error.value.code == "annotations-unreadable"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no GeoJSON: expecting an object or a list at line 1"),
        (b"{}", "no feature and has no list of features"),
        (b'{"images": [], "annotations": []}', "no feature and has no list of features"),
        (b'{"type": "FeatureCollection",\n "features": [{]}', "no GeoJSON: .* at line 2"),
        (b'{"type": "FeatureCollection", "features": [', "no GeoJSON"),
        (b'[{"type": "Feature", "geometry": null}] x', "extra data"),
        (b"[1]", "its item 1 is no feature"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\x89PNG\r\n", "no text in UTF-8"),
        (b"<svg></svg>", "begins with 'svg' instead of 'ASAP_Annotations'"),
        (b"<ASAP_Annotations>", "no XML: no element found|no XML: unclosed"),
        (b'<ASAP_Annotations><Annotation Type="Polygon"><Coordinate X="a" Y="1"/>', "annotation 1 has a coordinate"),
        (json.dumps([feature("A", [[0, 0], [1, "x"], [2, 2]])]).encode(), "feature 1 has no list of positions"),
        (json.dumps([feature("A", [[0, 0], [1, 1e99], [2, 2]])]).encode(), "no pixels of a slide"),
        (json.dumps([feature({"name": 3}, box(0, 0, 1, 1))]).encode(), "feature 1 has a classification that is no"),
        (json.dumps([feature("A", [1, 2], kind="Point")]).encode(), "holds no polygon, but 1 Point"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read_annotations(str(path), Storage())
    assert error.value.code == "annotations-unreadable"
    assert str(error.value).count("\n") == 0


def test_a_later_polygon_lies_over_an_earlier_one_and_the_bounds_are_the_origin(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.geojson", feature("A", box(0, 0, 64, 64)), feature("B", box(32, 0, 64, 64)))
    file = read_annotations(uri, Storage())
    found = use_annotations(file, rules(min_cover=0.5), (100, 200))
    assert found.labels == ("A", "B")
    assert found.annotate(100, 200, 64, 64).label == "A"  # half and half: the first by name
    assert found.annotate(101, 200, 64, 64).label == "B"
    assert found.annotate(0, 0, 64, 64).label is None
    assert use_annotations(file, rules(min_cover=0.51), (100, 200)).annotate(100, 200, 64, 64).label is None


def test_labels_of_classes() -> None:
    given = rules(classes={"Tumor": "tumor", "Tumor: Necrotic": "necrosis", "Ignore*": None})
    said = {name: label_of(name, given) for name in ("Tumor", "Tumor: Positive", "Tumor: Necrotic", "Ignore*", "Other")}
    assert said == {
        "Tumor": "tumor", "Tumor: Positive": "tumor", "Tumor: Necrotic": "necrosis", "Ignore*": "", "Other": None
    }  # fmt: skip
    assert label_of("Other", rules(regions=["Roi"])) == "Other"
    assert label_of("Roi", rules(regions=["Roi"])) is None


def test_what_nobody_annotated(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.geojson", feature("A", box(0, 0, 16, 64)), feature("Ignore*", box(48, 0, 64, 64)))
    file = read_annotations(uri, Storage())
    classes = {"A": "a", "Ignore*": None}
    known = use_annotations(file, rules(classes=classes, unannotated="none", masks=["none", "a"]), (0, 0))
    assert known.annotate(0, 0, 64, 64).class_pixels == {0: 2048, 1: 1024, 255: 1024}
    assert known.annotate(0, 0, 64, 64).label == "none"
    assert known.annotate(640, 0, 64, 64).class_pixels == {0: 4096}
    unknown = use_annotations(file, rules(classes=classes, masks=["none", "a"], min_cover=0.25), (0, 0))
    assert unknown.annotate(0, 0, 64, 64).class_pixels == {1: 1024, 255: 3072}
    assert unknown.annotate(0, 0, 64, 64).label == "a"
    assert unknown.annotate(640, 0, 64, 64).mask is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"classes": {"A": "a"}, "masks": ["b"]}, "does not list the label 'a'"),
        ({"unannotated": "c", "masks": ["a"]}, "does not list the label 'c'"),
        ({"masks": ["a", "a"]}, "each once"),
        ({"masks": []}, "each once"),
        ({"classes": {"A": None}}, "gives no class a label"),
        ({"min_cover": None}, "neither labels"),
        ({"min_cover": 0}, "greater than 0"),
    ],
)
def test_rules_that_contradict_themselves(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        rules(**keys)
    source = {"paths": ["a.tiff"], "mpp": 1.0, "annotations": {}}
    with pytest.raises(InputError, match=r"set slides\.index"):
        validate(IngestConfig, {"output": "out", "slides": source}, "test")


def labels(report: Any) -> dict[tuple[int, int], str | None]:
    rows = report.manifest.read(["x", "y", "label"], np.arange(report.manifest.header.tiles))
    return {(x, y): label for x, y, label in zip(*rows.to_pydict().values(), strict=True)}


def masks(report: Any) -> dict[str, np.ndarray]:
    shards = sorted((Path(report.manifest.uri) / "shards").rglob("*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard, columns=["tile_id", "mask"]).to_pylist()]
    return {row["tile_id"]: np.asarray(Image.open(io.BytesIO(row["mask"]))) for row in rows if row["mask"] is not None}


def test_an_index_with_annotations_gives_labels_and_masks(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    """Tiles of 128 level-0 pixels, in two columns and four rows."""
    for name in "ab":
        write_slide(tmp_path / f"{name}.tiff", seed=ord(name))
    tumor, hole = box(0, 0, 256, 128), box(64, 0, 128, 64)
    write(
        tmp_path / "a.geojson",
        feature("Tumor", tumor, hole),
        feature("Stroma", box(0, 128, 64, 512)),
        feature("Fat", tumor),
    )
    index = "slide,annotations\na.tiff,a.geojson\nb.tiff,\n"
    given = {"classes": {"Tumor": "tumor", "Stroma": "stroma"}, "masks": ["other", "tumor", "stroma"], "min_cover": 0.6}
    report = ingest_slides(tmp_path, index, slides={"annotations": given})
    table = report.manifest.read(["slide", "x", "y", "label", "has_mask"], np.arange(16)).to_pylist()
    of_a = {(row["x"], row["y"]): (row["label"], row["has_mask"]) for row in table if row["slide"] == "a"}
    assert of_a == {(0, 0): ("tumor", True), (128, 0): ("tumor", True)} | {
        (x, y): (None, x == 0) for x in (0, 128) for y in (128, 256, 384)
    }
    assert all((row["label"], row["has_mask"]) == (None, False) for row in table if row["slide"] == "b")
    expected = np.full((64, 64), 1)
    expected[:32, 32:] = 255
    found = masks(report)
    np.testing.assert_array_equal(found["a_0_0"], expected)
    assert {name: sorted(np.unique(mask).tolist()) for name, mask in found.items()} == {
        "a_0_0": [1, 255], "a_128_0": [1], "a_0_128": [2, 255], "a_0_256": [2, 255], "a_0_384": [2, 255]
    }  # fmt: skip
    notes = " ".join(report.notes)
    assert "1 of 2 slides have no annotations (line 3)." in notes
    assert "annotated classes that are not used, and their polygons: Fat (1)." in notes
    assert "class 1 35.00%, class 2 30.00%; 35.00% ignored." in notes


def test_bands_and_threads_label_alike(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from histill.tiles.bands import _cut_band, divide_slide
    from histill.tiles.part_shards import PartShards

    write_slide(tmp_path / "a.tiff")
    write(tmp_path / "a.geojson", feature("A", box(0, 0, 256, 300)), feature("B", box(0, 300, 200, 500)))
    slides = {"annotations": {"masks": ["A", "B"]}}
    index = "slide,annotations\na.tiff,a.geojson\n"
    whole = ingest_slides(tmp_path, index, slides=slides, rows_per_shard=3, rows_per_group=3)
    seen = []

    def cut(*arguments: Any) -> list:
        seen.extend(divide_slide(*arguments))
        return seen

    monkeypatch.setattr("histill.tiles.parts.divide_slide", cut)
    monkeypatch.setattr(
        "histill.tiles.parts.cut_bands", lambda bands: PartShards.join([_cut_band(band)[1] for band in bands])
    )
    monkeypatch.setattr("histill.tiles.ingest.share_cpus", lambda *_, **__: SpreadShare())
    spread = ingest_slides(
        tmp_path, index, slides=slides, rows_per_shard=3, rows_per_group=3, output=str(tmp_path / "spread")
    )
    assert len(seen) == 3
    assert spread.manifest.header == whole.manifest.header
    assert spread.notes == whole.notes


class SpreadShare:
    """As many CPUs as several nodes have."""

    threads, cpus, spread = 1, 1, True


def test_regions_of_interest_bound_what_is_cut(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    for name in "abc":
        write_slide(tmp_path / f"{name}.tiff", seed=ord(name))
    roi = [(0, 0), (256, 0), (256, 60), (140, 500), (0, 200)]  # of the tiles' centers
    write(tmp_path / "a.geojson", feature("Roi", [*map(list, roi)]), feature("A", box(0, 0, 640, 512)))
    write(tmp_path / "b.geojson", feature("A", box(0, 0, 640, 512)))
    index = "slide,annotations\na.tiff,a.geojson\nb.tiff,b.geojson\nc.tiff,\n"
    report = ingest_slides(tmp_path, index, slides={"annotations": {"regions": ["Roi"]}})
    table = report.manifest.read(["slide", "x", "y", "label"], np.arange(report.manifest.header.tiles)).to_pylist()
    found = {(row["x"], row["y"]): row["label"] for row in table if row["slide"] == "a"}
    assert found == dict.fromkeys([(0, 0), (128, 0), (0, 128), (128, 128), (0, 256)], "A")
    assert sum(row["slide"] == "c" for row in table) == 8
    assert [each for each in report.skipped if "b.tiff" in each and "there is no polygon of the classes Roi in" in each]


def test_a_replaced_file_makes_its_part_again(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    for name in "ab":
        write_slide(tmp_path / f"{name}.tiff", seed=ord(name))
        write(tmp_path / f"{name}.geojson", feature("A", box(0, 0, 640, 512)))
    index = "slide,annotations\na.tiff,a.geojson\nb.tiff,b.geojson\n"
    first = ingest_slides(tmp_path, index, slides={"annotations": {}})
    assert set(labels(first).values()) == {"A"}
    (record, _) = read_slides(first.manifest, Storage()).values()
    assert list(record.annotations) == [str(tmp_path / "a.geojson")]
    write(tmp_path / "b.geojson", feature("B", box(0, 0, 640, 512)))
    with pytest.raises(InputError, match=r"b\.geojson have been replaced") as error:
        ingest_slides(tmp_path, index, slides={"annotations": {}})
    assert error.value.code == "input-changed"
    (tmp_path / "set" / "manifest.json").unlink()
    again = ingest_slides(tmp_path, index, slides={"annotations": {}})
    assert (again.parts_done, again.parts_reused) == (1, 1)
    assert set(again.manifest.column("label", np.arange(16)).tolist()) == {"A", "B"}


def test_without_the_key_the_column_changes_nothing(
    tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]
) -> None:
    write_slide(tmp_path / "a.tiff")
    report = ingest_slides(tmp_path, "slide,annotations\na.tiff,missing.geojson\n")
    assert "slides.annotations={} takes the labels from the column 'annotations'" in " ".join(report.notes)
    assert set(labels(report).values()) == {None}
    assert "annotations" not in (tmp_path / "set" / "slides.json").read_text()
    assert "annotations" not in (tmp_path / "set" / "ingest.json").read_text()


@pytest.mark.parametrize(
    ("index", "given", "code", "said"),
    [
        ("slide\na.tiff\n", {}, "index-column-missing", "has no column 'annotations'; add it"),
        ("slide,annotations\na.tiff,b.geojson\n", {}, "too-many-unreadable", r"b\.geojson does not exist"),
        ("slide,annotations\na.tiff,a.csv\n", {}, "too-many-unreadable", "no GeoJSON"),
        (
            "slide,annotations\na.tiff,a.geojson\n",
            {"classes": {"Tumour": "t"}},
            "annotations-class",
            "names the class 'Tumour', and no annotation has it; they have Stroma, Tumor",
        ),
        ("slide,annotations\na.tiff,a.geojson\n", {"regions": ["Roi"]}, "annotations-class", "names the class 'Roi'"),
        (
            "slide,annotations\na.tiff,a.geojson\n",
            {"masks": ["Tumor"]},
            "annotations-class",
            "have the class 'Stroma', which slides.annotations.masks does not list",
        ),
    ],
)
def test_an_ingest_is_refused_before_slides_are_cut(
    tmp_path: Path,
    write_slide: Callable[..., str],
    ingest_slides: Callable[..., Any],
    index: str,
    given: dict[str, Any],
    code: str,
    said: str,
) -> None:
    write_slide(tmp_path / "a.tiff")
    (tmp_path / "a.csv").write_text("x,y\n")
    write(tmp_path / "a.geojson", feature("Tumor", box(0, 0, 9, 9)), feature("Stroma", box(0, 0, 9, 9)))
    with pytest.raises(InputError, match=said) as error:
        ingest_slides(tmp_path, index, slides={"annotations": given})
    assert error.value.code == code
    assert not (tmp_path / "set" / "shards").exists()
