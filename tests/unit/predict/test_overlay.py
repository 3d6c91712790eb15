"""Overlays of probabilities as other programs read them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile
from openslide import OpenSlide

from histill.outputs import OutputSpec
from histill.predict.overlay import encode_overlay, read_probabilities
from histill.predict.slide_pixels import SlidePixels
from histill.stream.responses import encode_logits

pytestmark = pytest.mark.unit


def slide_pixels(outputs: OutputSpec, logits: np.ndarray, places: list[tuple[int, int]]) -> SlidePixels:
    """Tiles of 64 px at `places`, of which each has the same logits [K - 1] relative to the background everywhere."""
    answers = [encode_logits(np.broadcast_to(each[:, None, None], (len(each), 64, 64))) for each in logits]
    columns, rows = np.array(places).T
    return SlidePixels(outputs, pa.chunked_array([answers]), columns, rows, 64, 64, 1.0, 0.5)


def test_a_pixel_is_the_mean_probability_of_what_it_covers() -> None:
    outputs = OutputSpec("segmentation", ("background", "a", "b"))
    pixels = slide_pixels(outputs, np.array([[2.0, -3], [-10, 4]], np.float32), [(10, 20), (74, 20)])
    image = read_probabilities(pixels, (10, 20, 190, 100), 4)
    assert (image.dtype, image.shape) == (np.uint8, (2, 20, 45))
    odds = np.exp([[2.0, -3], [-10, 4]])
    expected = np.rint(255 * odds / (1 + odds.sum(1, keepdims=True)))
    np.testing.assert_allclose(image[:, 3, 3], expected[0], atol=3)  # logits are stored in steps of 0.08
    np.testing.assert_allclose(image[:, 3, 20], expected[1], atol=3)
    assert (image[:, 16:] == 0).all()
    assert (image[:, :, 32:] == 0).all()


def test_a_boundary_counts_for_what_it_bounds() -> None:
    outputs = OutputSpec("segmentation", ("background", "a", "b", "boundary"))
    pixels = slide_pixels(outputs, np.array([[0.0, 1, 2]], np.float32), [(0, 0)])
    image = read_probabilities(pixels, (0, 0, 64, 64), 1)
    odds = np.exp([0.0, 1 + 0, 2])
    whole = 1 + odds.sum()
    np.testing.assert_allclose(image[:, 5, 5] / 255, [odds[0] / whole, (odds[1] + odds[2]) / whole], atol=0.02)


def test_the_file_is_a_pyramid_with_the_size_of_a_pixel(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    image = np.kron(draws.integers(0, 256, (2, 150, 260)), np.ones((8, 8), int)).astype(np.uint8)
    data = encode_overlay(image, ("nucleus", "mitosis"), 2.0)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert file.is_ome
        (series,) = file.series
        assert [level.shape for level in series.levels] == [
            (2, 1200, 2080),
            (2, 600, 1040),
            (2, 300, 520),
            (2, 150, 260),
        ]
        assert series.axes == "CYX"
        np.testing.assert_array_equal(series.levels[0].asarray(), image)
        np.testing.assert_array_equal(series.levels[3].asarray(), image[:, ::8, ::8])
        about = tifffile.xml2dict(file.ome_metadata or "")["OME"]["Image"]["Pixels"]
    assert (about["PhysicalSizeX"], about["PhysicalSizeXUnit"], about["SizeC"]) == (2.0, "µm", 2)
    assert [channel["Name"] for channel in about["Channel"]] == ["nucleus", "mitosis"]
    (tmp_path / "one.ome.tif").write_bytes(encode_overlay(image[:1], ("nucleus",), 2.0))
    with OpenSlide(str(tmp_path / "one.ome.tif")) as slide:
        assert slide.dimensions == (2080, 1200)
