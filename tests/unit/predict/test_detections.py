"""Objects of whole slides: the same for any grid of tiles, in the right place, as QuPath imports them."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest
import tifffile
import torch
from torch import nn

import histill.objects.blocks
import histill.predict.detections
import histill.predict.predict
import histill.predict.shard
import histill.tiles.ingest
from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage
from histill.config.load import validate
from histill.config.objects import Objects
from histill.config.predict_tiles import PredictConfig
from histill.objects.blocks import Object
from histill.objects.watershed import separate_objects
from histill.outputs import OutputSpec
from histill.predict.detections import find_slide_objects
from histill.predict.predict import Predicted, predict
from histill.predict.slide_pixels import SlidePixels, place_tiles
from histill.predict.slides import PredictedSlide
from histill.stream.responses import encode_logits
from histill.tiles.tiling import tile_grid

pytestmark = pytest.mark.unit

NUCLEI = OutputSpec("segmentation", ("background", "nucleus"))
MPP = 0.5


def discs(height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """Discs of 6 to 9 px at random, some of which touch."""
    draws = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    found = np.zeros((height, width), bool)
    for x, y, radius in zip(draws.uniform(12, width - 12, count), draws.uniform(12, height - 12, count),
                            draws.uniform(6, 9, count), strict=True):  # fmt: skip
        found |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return found


def cut(nuclei: np.ndarray, tile_px: int, step: int, begin: int = 0) -> SlidePixels:
    """The answers of a teacher that knows `nuclei`, for tiles at every `step` pixels from `begin` on."""
    logits = np.where(nuclei, 4.0, -4.0).astype(np.float32)
    height, width = nuclei.shape
    padded = np.pad(logits, tile_px, constant_values=-4.0)
    places = [(x, y) for y in range(begin, height, step) for x in range(begin, width, step)]
    answers = [
        encode_logits(padded[y + tile_px : y + 2 * tile_px, x + tile_px : x + 2 * tile_px][None]) for x, y in places
    ]
    columns, rows = np.array(places).T
    return SlidePixels(NUCLEI, pa.chunked_array([answers]), columns, rows, tile_px, tile_px, 1.0, MPP)


def find(pixels: SlidePixels, least: float = 10.0) -> list[Object]:
    return list(find_slide_objects(pixels, Objects(min_um2=least), pixels.blocks(histill.objects.blocks.BLOCK_PX)))


def shapes(found: list[Object]) -> list[tuple[Any, ...]]:
    """What objects are, in an order of their own; an outline begins at its first corner from the top left."""
    polygons = []
    for each in found:
        first = np.lexsort(each.outline.T)[0]
        outline = np.roll(each.outline, -first, axis=0)
        polygons.append((outline.tolist(), each.class_index, round(each.probability, 5)))
    return sorted(polygons)


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 128 px with a margin of 64, so that a small picture has many."""
    for module in (histill.objects.blocks, histill.predict.detections):
        monkeypatch.setattr(module, "BLOCK_PX", 128)


@pytest.mark.usefixtures("_small_blocks")
def test_objects_over_a_border_are_the_same_for_two_grids() -> None:
    """Tiles of 64 px beside each other, and of 96 px that overlap and begin elsewhere."""
    nuclei = discs(420, 500, 150)
    one, other = cut(nuclei, 64, 64), cut(nuclei, 96, 70, begin=-33)
    found = [find(each) for each in (one, other)]
    assert shapes(found[0]) == shapes(found[1])
    whole = separate_objects(one.window(0, 0, 500, 420), boundary=False, mpp=MPP)
    kept = whole.keep(whole.areas * MPP**2 >= Objects().min_um2)
    assert len(found[0]) == len(kept.classes) > 60
    crossing = [each for each in found[0] if len(set((each.outline // 64).astype(int)[:, 0])) > 1]
    assert len(crossing) > 8  # of a border between two tiles


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(
    ("width", "height", "left", "top", "pieces"),
    [
        (60, 6, 83, 30, 1),  # of 45 px before a block's edge, and 15 px behind it
        (100, 6, 48, 30, 2),  # of 80 and 20
        (100, 6, 108, 30, 2),  # of 20 and 80
        (64, 6, 64, 30, 1),  # beside the edge, and as large as the margin
        (65, 6, 64, 30, 2),
        (63, 6, 66, 30, 1),
        (6, 100, 30, 48, 2),
        (100, 100, 48, 48, 4),  # over a corner
        (20, 100, 118, 48, 4),  # over a corner, and within the margin along one axis
        (200, 20, 20, 118, 4),
        (300, 6, 100, 30, 4),  # over three edges
    ],
)
def test_no_pixel_is_of_two_objects_wherever_a_block_ends(
    width: int, height: int, left: int, top: int, pieces: int
) -> None:
    """Blocks end at every 128th pixel, and are read 64 px farther."""
    bar = np.zeros((420, 500), bool)
    bar[top : top + height, left : left + width] = True
    found = find(cut(bar, 64, 64))
    assert sum(each.area for each in found) == pytest.approx(bar.sum(), abs=0.5 * len(found))
    assert len(found) == pieces


@pytest.mark.usefixtures("_small_blocks")
def test_an_object_larger_than_the_margin_is_cut_at_blocks_without_overlap() -> None:
    gland = np.zeros((420, 500), bool)
    gland[30:390, 40:460] = True
    found = find(cut(gland, 64, 64))
    assert len(found) > 4
    assert sum(each.area for each in found) == pytest.approx(gland.sum(), rel=1e-3)


def test_the_smallest_area_is_in_square_microns() -> None:
    nuclei = np.zeros((64, 128), bool)
    nuclei[10:16, 10:16] = nuclei[30:37, 100:107] = True  # 9 and 12.25 um2
    for least, count in ((10.0, 1), (0.0, 2), (12.5, 0)):
        assert len(find(cut(nuclei, 64, 64), least)) == count


def test_where_tiles_overlap_a_pixel_is_that_of_the_tile_that_sees_most_around_it() -> None:
    sure, unsure = (encode_logits(np.full((1, 64, 64), each, np.float32)) for each in (6.0, -6.0))
    pixels = SlidePixels(
        NUCLEI, pa.chunked_array([[sure, unsure]]), np.array([0, 40]), np.array([0, 0]), 64, 64, 1.0, MPP
    )
    foreground = pixels.window(0, 0, 110, 64)[1] > 0.5
    assert foreground[32].tolist() == [True] * 52 + [False] * 58
    assert foreground[0].sum() == 64  # at the edge of both, that of the first


class Dark(nn.Module):
    """Darker than half is nucleus: an answer that depends on no other pixel."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        logit = (128 - tiles.mean(1)) / 20
        return torch.stack([torch.zeros_like(logit), logit], 1)


def test_a_slide_in_many_parts_has_the_same_objects(
    predicted: Callable[..., Predicted], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whose parts come in any order."""
    slide = write_slide(tmp_path / "s.tif", discs(384, 384, 60))
    whole = rings(predicted(slide, 64))
    monkeypatch.setattr(histill.predict.detections, "_BLOCKS_AT_ONCE", 2)
    for module in (histill.objects.blocks, histill.predict.detections):
        monkeypatch.setattr(module, "BLOCK_PX", 128)
    assert rings(predicted(slide, 64, output=str(tmp_path / "parts"))) == whole


def test_a_part_reads_the_answers_of_its_own_tiles_alone(
    predicted: Callable[..., Predicted], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the reads of a slide would grow with the square of its size."""
    monkeypatch.setattr(histill.predict.detections, "_BLOCKS_AT_ONCE", 1)
    for module in (histill.objects.blocks, histill.predict.detections):
        monkeypatch.setattr(module, "BLOCK_PX", 128)
    read: list[int] = []

    def note(pixels: SlidePixels, objects: Objects, blocks: Sequence[Any]) -> Iterator[Object]:
        read.append(len(pixels.answers))
        return find_slide_objects(pixels, objects, blocks)

    monkeypatch.setattr(histill.predict.detections, "find_slide_objects", note)
    predicted(write_slide(tmp_path / "s.tif", discs(384, 384, 60)), 64, overlap_px=0)
    assert read == [9, 12, 9, 12, 16, 12, 9, 12, 9]  # blocks of 2 x 2 tiles, and those around them


def test_shards_without_a_tile_that_is_asked_for_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other slides' tiles, and undecodable ones, count for nothing."""
    levels = [encode_logits(np.full((1, 64, 64), each, np.float32)) for each in (-6.0, 6.0)]
    shards = {
        "a": {"slide": ["t", "s", "s"], "class": ["", "", ""], "x": [0, 0, 64], "logits": [levels[1], *levels[:1] * 2]},
        "b": {"slide": ["s", "s"], "class": [None, ""], "x": [128, 192], "logits": [None, levels[1]]},
    }
    asked: list[tuple[str, str]] = []

    def read(self: PredictedSlide, shard: str, columns: Sequence[str]) -> pa.Table:
        asked.append((shard, columns[-1]))
        return pa.table(shards[shard] | {"y": [0] * len(shards[shard]["x"])}).select(columns)

    monkeypatch.setattr(PredictedSlide, "_read", read)
    slide = PredictedSlide("s", "s", ("a", "b"), None, "out", NUCLEI, 64, 64, MPP, Storage())
    places = slide.find_places()
    assert places is not None
    assert (places.columns.tolist(), places.rows.tolist()) == ([0, 64, 192], [0, 0, 0])
    asked.clear()
    foreground = slide.read_pixels(places.take(np.array([2]))).window(128, 0, 128, 64)[1] > 0.5
    assert asked == [("b", "logits")]
    assert foreground[10].tolist() == [False] * 64 + [True] * 64


@pytest.fixture
def predicted(
    in_process: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Predicted]:
    """`predicted(slide, tile_px, **keys)`: predictions of a slide by `Dark`."""
    in_process(histill.predict.predict, histill.predict.detections, histill.tiles.ingest)
    monkeypatch.setattr(histill.predict.predict, "resolve", lambda model, storage: model)

    def run(slide: str, tile_px: int, **keys: Any) -> Predicted:
        card = ModelCard(
            encoder="csat_tiny", mean=(0.5,) * 3, std=(0.2,) * 3, tile_px=tile_px, tile_mpp=MPP, size_px=tile_px,
            tiles_digest="tiles", train_cases=(), histill="0", decoder_channels=(16, 16, 8, 8, 8),
            classes=NUCLEI.classes,
        )  # fmt: skip
        for module in (histill.predict.predict, histill.predict.shard):
            monkeypatch.setattr(module, "load", lambda *_: (Dark(), card, "0" * 64))
        data = {"model": "dark", "slides": [slide], "output": str(tmp_path / "out"), "slide_mpp": MPP, "objects": {}}
        return predict(validate(PredictConfig, data | keys, "test"))

    return run


@pytest.mark.parametrize("level0_mpp", [0.2425, 0.499 / 1.02, 0.33])
def test_tiles_of_a_grid_leave_no_pixel_between_them(level0_mpp: float) -> None:
    """Wherever the grid begins, and whichever of its tiles are there."""
    scale = 0.5 / level0_mpp
    for first in (0, 1, 117):
        corners = tile_grid((120_000, 600), (first / 120_000, 0.0, 1.0, 1.0), 256 * scale)
        starts = np.array(sorted({x for x, _ in corners}))
        places = place_tiles(starts, scale, 256)
        assert set(np.diff(places)) == {256}
        assert abs(places - starts / scale).max() < 1
        assert set(np.diff(place_tiles(starts[3::5], scale, 256))) == {5 * 256}
        overlapping = tile_grid((120_000, 600), (first / 120_000, 0.0, 1.0, 1.0), 256 * scale, 32 * scale)
        starts = np.array(sorted({x for x, _ in overlapping}))
        assert abs(place_tiles(starts, scale, 256) - starts / scale).max() < 1


def test_tiles_that_were_not_cut_at_another_resolution_lie_where_they_say() -> None:
    starts = np.array([10, 74, 139, 203, 266])
    assert place_tiles(starts, 1.0, 64).tolist() == starts.tolist()


def stain(nuclei: np.ndarray) -> np.ndarray:
    return np.where(nuclei[..., None], (60, 40, 110), (225, 150, 200)).astype(np.uint8)


def write_slide(path: Path, nuclei: np.ndarray, mpp: float = MPP) -> str:
    """A slide on which `nuclei` are dark."""
    tifffile.imwrite(path, stain(nuclei), tile=(256, 256), photometric="rgb", resolution=(1e4 / mpp, 1e4 / mpp),
                     resolutionunit="CENTIMETER")  # fmt: skip
    return str(path)


def collection(found: Predicted) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(found.predictions, "detections", "s.geojson").read_text())
    return data


def rings(found: Predicted) -> list[Any]:
    """The outlines as sets of corners, in an order of their own."""
    return sorted(sorted(each["geometry"]["coordinates"][0]) for each in collection(found)["features"])


def test_detections_are_what_qupath_imports_and_the_same_for_tiles_of_another_size(
    predicted: Callable[..., Predicted], tmp_path: Path
) -> None:
    nuclei = discs(384, 384, 60)
    slide = write_slide(tmp_path / "s.tif", nuclei, mpp=MPP)
    one, other = predicted(slide, 64, overlap_px=0), predicted(slide, 96, overlap_px=0)
    assert (one.detections, one.tiles, other.tiles) == (1, 36, 16)
    assert rings(one) == rings(other)
    features = collection(one)["features"]
    assert len(features) > 25
    assert collection(one)["slide"]["objects"] == {"nucleus": len(features)}
    for each in features:
        assert each["type"] == "Feature"
        assert each["geometry"]["type"] == "Polygon"
        (ring,) = each["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        properties = each["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"]["name"] == "nucleus"
        assert properties["measurements"].keys() == {"Detection probability", "Area µm^2"}
        assert 0.9 < properties["measurements"]["Detection probability"] <= 1
    areas = [each["properties"]["measurements"]["Area µm^2"] for each in features]
    assert sum(areas) == pytest.approx(nuclei.sum() * MPP**2, rel=0.05)
    assert predicted(slide, 64, overlap_px=0).reused
    Path(one.predictions, "detections", "s.geojson").unlink()
    assert rings(predicted(slide, 64, overlap_px=0)) == rings(other)


class Unsure(Dark):
    """Finds a nucleus along every edge of what it sees, as networks do that pad with zeros."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        said = super().forward(tiles)
        said[:, 1, :3] = said[:, 1, -3:] = said[:, 1, :, :3] = said[:, 1, :, -3:] = 5
        return said


def test_tiles_overlap_so_that_their_edges_are_not_seen(
    predicted: Callable[..., Predicted], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By an eighth, where objects are asked for; the area of the tissue is counted once."""
    nuclei = discs(512, 512, 80)
    nuclei[:40] = nuclei[-40:] = nuclei[:, :40] = nuclei[:, -40:] = False
    slide = write_slide(tmp_path / "s.tif", nuclei)
    sure = predicted(slide, 64)
    monkeypatch.setitem(globals(), "Dark", Unsure)
    unsure, beside = predicted(slide, 64, output=str(tmp_path / "a")), predicted(slide, 64, overlap_px=0)
    assert (unsure.tiles, beside.tiles) == (81, 64)
    inside = [ring for ring in rings(unsure) if np.min(ring) > 4 and np.max(ring) < 508]
    assert inside == rings(sure)
    assert sum(ring in inside for ring in rings(beside)) < 0.8 * len(inside)
    areas = [float(pandas.read_csv(each.slides)["area_mm2"].sum()) for each in (unsure, beside)]
    assert areas == pytest.approx([81 * (56 * MPP / 1000) ** 2, 64 * (64 * MPP / 1000) ** 2], abs=2e-6)


def test_detections_count_from_the_bounds_of_a_leica_slide(
    predicted: Callable[..., Predicted], write_leica: Callable[..., str], tmp_path: Path
) -> None:
    """A square whose corner is known in pixels of the scanned area, which begins far from that of level 0."""
    nuclei = np.zeros((256, 512), bool)
    nuclei[100:120, 300:330] = True
    found = predicted(write_leica(tmp_path / "s.scn", stain(nuclei), left=1000, top=640), 64)
    assert collection(found)["slide"]["bounds"] == {"x": 1000, "y": 640}
    (ring,) = rings(found)
    np.testing.assert_allclose([np.min(ring, 0), np.max(ring, 0)], [[300, 100], [330, 120]], atol=1.5)


def test_an_overlay_begins_at_the_bounds_of_a_leica_slide(
    predicted: Callable[..., Predicted], write_leica: Callable[..., str], tmp_path: Path
) -> None:
    nuclei = np.zeros((256, 512), bool)
    nuclei[96:128, 320:352] = True
    slide = write_leica(tmp_path / "s.scn", stain(nuclei), left=1024, top=640)
    found = predicted(slide, 64, objects=None, overlay_mpp=4.0)
    assert (found.overlays, found.detections) == (1, 0)
    with tifffile.TiffFile(Path(found.predictions, "overlays", "s.ome.tif")) as file:
        image = file.series[0].asarray()
    assert image.shape == ((2048 - 640) // 8, (4096 - 1024) // 8)
    rows, columns = np.nonzero(image > 200)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 15, 40, 43)


def test_pixels_of_a_finer_scan_count_level_0_and_microns(predicted: Callable[..., Predicted], tmp_path: Path) -> None:
    """At 0.25 um/px tiles of 0.5 have half as many pixels as the slide."""
    nuclei = np.zeros((512, 512), bool)
    nuclei[200:240, 300:360] = True
    slide = write_slide(tmp_path / "s.tif", nuclei, mpp=0.25)
    found = predicted(slide, 64, slide_mpp=0.25, min_tissue=0.0)
    (ring,) = rings(found)
    np.testing.assert_allclose([np.min(ring, 0), np.max(ring, 0)], [[300, 200], [360, 240]], atol=1)
    (feature,) = collection(found)["features"]
    assert feature["properties"]["measurements"]["Area µm^2"] == pytest.approx(40 * 60 / 16, rel=0.01)
