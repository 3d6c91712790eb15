"""Embeddings of a slide in TRIDENT's form, read back by h5py alone."""

import io
from pathlib import Path

import h5py
import numpy as np
import pytest

from histill.config.common import Storage
from histill.predict.features_file import SlideEmbeddings, encode_features, nominal_magnification
from histill.teachers.slide_features import read_patches

pytestmark = pytest.mark.unit


def features(tiles: int = 3, width: int = 5, size: tuple[int, int] | None = (90_000, 40_000)) -> SlideEmbeddings:
    values = np.random.default_rng(0).normal(0, 1, (tiles, width)).astype(np.float16)
    coords = np.array([[1024 * each, 512] for each in range(tiles)], np.int64)
    return SlideEmbeddings("a slide", values, coords, 256, 0.5, 563.76, 0.2271, size, "s3://b/features")


def test_the_file_has_trident_form() -> None:
    given = features()
    with h5py.File(io.BytesIO(encode_features(given)), "r") as file:
        assert set(file) == {"features", "coords"}
        assert (file["features"].shape, file["features"].dtype) == ((3, 5), np.float32)
        np.testing.assert_array_equal(file["features"][:], given.values.astype(np.float32))
        assert file["coords"].dtype == np.int64
        np.testing.assert_array_equal(file["coords"][:], given.coords)
        assert dict(file["features"].attrs) == {"name": "a slide", "savetodir": "s3://b/features"}
        attributes = dict(file["coords"].attrs)
    assert {name: attributes[name] for name in (
        "patch_size", "patch_size_level0", "level0_magnification", "target_magnification", "overlap", "name",
        "savetodir", "level0_width", "level0_height",
    )} == {
        "patch_size": 256, "patch_size_level0": 564, "level0_magnification": 40, "target_magnification": 20,
        "overlap": 0, "name": "a slide", "savetodir": "s3://b/features", "level0_width": 90_000,
        "level0_height": 40_000,
    }  # fmt: skip
    assert (attributes["level0_mpp"], attributes["target_mpp"], attributes["tile_side_level0"]) == (0.2271, 0.5, 563.76)


def test_more_tiles_than_a_chunk_and_a_slide_of_unknown_size() -> None:
    given = features(tiles=1000, size=None)
    with h5py.File(io.BytesIO(encode_features(given)), "r") as file:
        np.testing.assert_array_equal(file["features"][:], given.values.astype(np.float32))
        assert "level0_width" not in file["coords"].attrs


def test_the_teacher_of_existing_features_reads_them_exactly(tmp_path: Path) -> None:
    given = features()
    (tmp_path / "s.h5").write_bytes(encode_features(given))
    found = read_patches(str(tmp_path / "s.h5"), Storage())
    np.testing.assert_array_equal(found.features, given.values)
    np.testing.assert_array_equal(found.corners, given.coords)
    assert (found.side, found.extent) == (563.76, (90_000, 40_000))


@pytest.mark.parametrize(
    ("mpp", "power"),
    [(0.25, 40), (0.2271, 40), (0.2738, 40), (0.5, 20), (0.499, 20), (0.46, 20), (1.0, 10), (0.12, 80)],
)
def test_magnifications_are_those_of_usual_scanners(mpp: float, power: int) -> None:
    assert nominal_magnification(mpp) == power
