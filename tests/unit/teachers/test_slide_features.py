"""Features extracted elsewhere are joined to tiles by slide and place, exactly or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.config.embeddings import EmbeddingTeacher
from histill.config.encoder import FeaturesTeacher
from histill.config.load import validate
from histill.errors import InputError
from histill.licenses import License
from histill.stream.responses import decode_embedding
from histill.teachers import cache as caching
from histill.teachers.encoder_presets import PRESETS
from histill.teachers.shard_responses import read_first_responses
from histill.teachers.slide_features import SlideFeatures
from histill.teachers.teacher import load_teacher
from histill.testing.tile_sets import make_tile_set
from histill.tiles.manifest import Manifest
from histill.tiles.shards import shards_of
from histill.tiles.whole_table import read_table

pytestmark = pytest.mark.unit

STORAGE = Storage()
WIDTH = 5
SIDE = 128  # of a tile at level 0: 64 px at 1 um/px of slides at 0.5
SLIDES = {"a": (640, 512), "b": (640, 512)}  # width, height


@pytest.fixture
def tiles(tmp_path: Path, write_slide: Callable[..., str], ingest_slides: Callable[..., Any]) -> Manifest:
    """Two slides of 2 x 4 tiles with tissue each, at (0 or 128, 0 to 384)."""
    for seed, name in enumerate(SLIDES):
        write_slide(tmp_path / f"{name}.tiff", seed)
    found: Manifest = ingest_slides(tmp_path, "slide\na.tiff\nb.tiff\n").manifest
    assert read_table(found)["x"].to_pylist() == [0, 128] * 8
    return found


def feature_of(slide: str, x: int, y: int) -> np.ndarray:
    """What stands for the features of a patch: a function of where it lies."""
    return np.array([ord(slide), x / 64, y / 64, (x - y) / 7, 1], np.float32)


def grid(step: int = SIDE, shift: tuple[int, int] = (0, 0)) -> list[tuple[int, int]]:
    """Patches column by column, as TRIDENT's older versions order them, and more of them than there are tiles."""
    return [(x + shift[0], y + shift[1]) for x in range(0, 512, step) for y in range(0, 512, step)]


def write_h5(folder: Path, slide: str, corners: list[tuple[int, int]], **changes: Any) -> Path:
    """A file as TRIDENT's `save_h5` and `coords_to_h5` write it; `changes` are of data sets and attributes."""
    folder.mkdir(exist_ok=True)
    width, height = SLIDES.get(slide, (640, 512))
    attributes = {
        "patch_size": 64, "patch_size_level0": SIDE, "level0_magnification": 20, "target_magnification": 10,
        "overlap": 0, "name": slide, "savetodir": str(folder), "level0_width": width, "level0_height": height,
    }  # fmt: skip
    data = {
        "features": np.stack([feature_of(slide, *corner) for corner in corners]) if corners else np.empty((0, WIDTH)),
        "coords": np.array(corners, np.int64).reshape(-1, 2),
    }
    data |= {name: changes.pop(name) for name in list(changes) if name in data}
    with h5py.File(folder / f"{slide}.h5", "w") as file:
        for name, values in data.items():
            if values is not None:
                chunk = (1, *values.shape[1:]) if values.size else None
                file.create_dataset(name, data=values, chunks=chunk, maxshape=chunk and (None, *values.shape[1:]))
        file["features" if data["features"] is not None else "coords"].attrs["encoder"] = "uni_v1"
        for name, value in (attributes | changes).items():
            if value is not None and data["coords"] is not None:
                file["coords"].attrs[name] = value
    return folder / f"{slide}.h5"


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A folder with the features of both slides."""
    for slide in SLIDES:
        write_h5(tmp_path / "features", slide, grid())
    return tmp_path / "features"


def load(folder: Path, **keys: Any) -> SlideFeatures:
    return SlideFeatures.load(validate(FeaturesTeacher, {"folder": str(folder), **keys}, "the test"), STORAGE)


def find(folder: Path, tiles: Manifest, rows: list[int] | None = None) -> np.ndarray:
    return load(folder).find_embeddings(tiles, np.arange(tiles.header.tiles) if rows is None else np.array(rows))


def refused(folder: Path, tiles: Manifest) -> str:
    with pytest.raises(InputError) as caught:
        find(folder, tiles)
    message = str(caught.value)
    assert "\n" not in message
    return message


def expected(tiles: Manifest, rows: list[int]) -> np.ndarray:
    table = read_table(tiles).take(rows).to_pylist()
    return np.stack([feature_of(tile["slide"], tile["x"], tile["y"]) for tile in table])


@pytest.mark.parametrize("rows", [list(range(16)), [15, 0, 9, 3]])
def test_each_tile_gets_the_features_of_its_place(features: Path, tiles: Manifest, rows: list[int]) -> None:
    np.testing.assert_array_equal(find(features, tiles, rows), expected(tiles, rows))
    teacher = load(features)
    assert (teacher.outputs.kind, teacher.outputs.width) == ("encoder", WIDTH)
    assert teacher.sees(64) == 64


def test_other_forms_of_the_same_are_read(tmp_path: Path, tiles: Manifest) -> None:
    values = np.stack([feature_of("a", *corner) for corner in grid()])
    folder = tmp_path / "features"
    write_h5(folder, "a", grid(), features=values[None].astype(np.float16))  # [1, N, D], as older tools wrote
    write_h5(
        folder, "b", grid(), level0_width=None, level0_height="None", patch_size_level0=127, tile_side_level0=128.2
    )
    write_h5(folder, "c", [], features=np.empty((0,), np.float32))  # a slide without tissue
    found = find(folder, tiles)
    np.testing.assert_allclose(found, expected(tiles, list(range(16))), rtol=2**-11)


def test_the_configured_teacher_is_this_one(features: Path) -> None:
    config = validate(TeacherConfig, {"features": {"folder": str(features)}}, "the test")
    teacher = load_teacher(config, 0.25, STORAGE)
    assert teacher.digest == load(features).digest
    with pytest.raises(InputError, match=r"answer no pixels; cache them with histill cache"):
        teacher.respond(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_the_digest_changes_with_the_files(features: Path) -> None:
    first = load(features).digest
    assert load(features).digest == first
    path = features / "a.h5"
    os.utime(path, ns=(1, 1))
    second = load(features).digest
    write_h5(features, "c", grid())
    assert len({first, second, load(features).digest}) == 3


def test_a_shifted_grid_is_refused(features: Path, tiles: Manifest) -> None:
    write_h5(features, "a", grid(shift=(1, 0)))
    first = read_table(tiles)["tile_id"][0].as_py()
    assert refused(features, tiles) == (
        f"features {features}/a.h5 lie on another grid: tile {first} begins at (0, 0) of level 0, and the nearest "
        "patch at (1, 0); cut tiles and patches of one grid, from the slide's corner and without overlap."
    )


def test_patches_of_another_size_are_refused(features: Path, tiles: Manifest) -> None:
    write_h5(features, "b", grid(256), patch_size_level0=256)
    first = read_table(tiles)["tile_id"][8].as_py()
    assert refused(features, tiles) == (
        f"features {features}/b.h5 are of patches of 256 px at level 0, and tile {first} has 128; cut tiles of the "
        "patches' side and resolution."
    )
    write_h5(features, "b", grid(), patch_size_level0=129)
    assert "are of patches of 129 px at level 0" in refused(features, tiles)


def test_missing_tiles_are_refused(features: Path, tiles: Manifest) -> None:
    write_h5(features, "b", [corner for corner in grid() if corner not in [(128, 0), (0, 256)]])
    tile = read_table(tiles)["tile_id"][9].as_py()
    assert refused(features, tiles) == (
        f"features {features}/b.h5 lack tile {tile} at (128, 0), and 2 of 8 tiles like it; extract the features of all "
        "tiles, or leave such tiles out by a higher slides.min_tissue."
    )
    write_h5(features, "b", [])
    assert f"b.h5 lack tile {read_table(tiles)['tile_id'][8].as_py()} at (0, 0), and 8 of 8 tiles" in refused(
        features, tiles
    )


def test_other_slides_are_refused(features: Path, tiles: Manifest) -> None:
    first = read_table(tiles)["tile_id"][8].as_py()
    write_h5(features, "b", grid(), level0_width=1280)
    assert refused(features, tiles) == (
        f"features {features}/b.h5 are of a slide of 1280 x 512 px, and tile {first} is of one of 640 x 512; extract "
        "the features of that slide."
    )
    (features / "b.h5").unlink()
    assert refused(features, tiles) == (
        f"features {features} have no b.h5 for tile {first}; extract the features of that slide, or name the folder "
        "that has them."
    )


def test_a_set_of_images_has_no_places(features: Path, tmp_path: Path) -> None:
    assert "has no record of its slides" in refused(features, make_tile_set(tmp_path / "images", tiles=8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": None}, "have no data set 'features' of their own; extract"),
        ({"coords": None}, "have no data set 'coords' of their own; extract"),
        ({"features": np.zeros((3, WIDTH))}, r"have the shapes \(3, 5\) and, for their coords, \(16, 2\); "),
        ({"coords": np.zeros((16, 3), np.int64)}, r"for their coords, \(16, 3\); \[N, D\] and \[N, 2\] were expected"),
        ({"features": np.array([b"x"] * 16)}, r"have features of the type \|S1, not numbers; extract"),
        ({"patch_size_level0": None}, "do not tell patch_size_level0, the side of their patches"),
        ({"patch_size_level0": "None"}, "do not tell patch_size_level0, the side of their patches"),
        ({"coords": np.zeros((16, 2), np.int64)}, r"have two rows for the patch at \(0, 0\); extract"),
        (
            {"features": np.zeros((16, 7))},
            "have a width of 7, and others of their folder 5; keep those of each encoder",
        ),
        ({"features": np.full((16, WIDTH), np.nan)}, "hold nan, infinity or more than 65504; extract"),
        ({"features": np.full((16, WIDTH), 1e5)}, "hold nan, infinity or more than 65504; extract"),
    ],
    ids=range(11),
)
def test_files_of_another_form_are_refused(features: Path, tiles: Manifest, changes: dict[str, Any], said: str) -> None:
    write_h5(features, "b", grid(), **changes)
    with pytest.raises(InputError, match=f"b\\.h5 .*{said}"):
        find(features, tiles)


def test_damaged_files_are_refused(features: Path, tiles: Manifest) -> None:
    path = features / "b.h5"
    whole = path.read_bytes()
    for data in (b"", b"PK\x03\x04", whole[: len(whole) // 2]):
        path.write_bytes(data)
        assert "b.h5 are no HDF5 file, or were cut short; extract the features again" in refused(features, tiles)


def test_no_other_file_is_read_through_one(features: Path, tiles: Manifest) -> None:
    """HDF5 knows links to, and views of, any other file of the machine."""
    for change in ("link", "view", "raw"):
        write_h5(features, "b", grid(), features=None)
        with h5py.File(features / "b.h5", "a") as file:
            if change == "link":
                file["features"] = h5py.ExternalLink("a.h5", "features")
            elif change == "view":
                layout = h5py.VirtualLayout((16, WIDTH), np.float64)
                layout[:] = h5py.VirtualSource(str(features / "a.h5"), "features", (16, WIDTH))
                file.create_virtual_dataset("features", layout)
            else:
                file.create_dataset("features", (16, WIDTH), np.float64, external=[("/etc/hostname", 0, 640)])
        assert "have no data set 'features' of their own" in refused(features, tiles), change


def test_a_folder_without_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"hold no \.h5 file; name the folder in which TRIDENT wrote one for each slide"
    ):
        load(tmp_path)
    write_h5(tmp_path, "a", [])
    with pytest.raises(InputError, match=r"hold none in any of 1 files; extract the features again"):
        load(tmp_path)


def test_terms_come_from_the_preset_or_the_configuration(features: Path) -> None:
    assert load(features).license is None
    own = {"name": "agreement 7", "commercial": True, "source": "https://example.org/agreement"}
    assert load(features, license=own).license == License(**own)
    with pytest.raises(
        InputError, match=r"have a width of 5, and preset uni has 1024; name the encoder that made them"
    ):
        load(features, preset="uni")
    for slide in SLIDES:
        write_h5(features, slide, grid(), features=np.zeros((16, 1024), np.float16))
    assert load(features, preset="uni").license == PRESETS["uni"].license


def test_they_are_cached_as_if_they_had_been_answered(
    features: Path, tiles: Manifest, tmp_path: Path, in_process: Callable[..., None]
) -> None:
    in_process(caching)

    def keys(**changes: Any) -> CacheConfig:
        teacher = {"features": {"folder": str(features), "license": {"name": "MIT", "source": "https://mit.example"}}}
        data = {"tiles": tiles.uri, "teacher": teacher, "output": str(tmp_path / "caches"), **changes}
        return validate(CacheConfig, data, "the test")

    made = caching.cache_responses(keys())
    assert (made.header.width, made.header.tiles, made.header.undecodable) == (WIDTH, 16, 0)
    found = [
        decode_embedding(each, WIDTH)
        for shard in shards_of(tiles)
        for each in read_first_responses(made.header.at(made.uri), shard, STORAGE) or []
    ]
    np.testing.assert_allclose(found, expected(tiles, list(range(16))), rtol=2**-11)
    np.testing.assert_allclose(made.header.mean, expected(tiles, list(range(16))).mean(0), rtol=2**-10, atol=1e-6)
    assert caching.cache_responses(keys()).reused
    with pytest.raises(InputError, match=r"are of whole upright tiles, and views is 2; leave views, augment\.flips"):
        caching.cache_responses(keys(views=2, augment={"flips": True}))
    with pytest.raises(InputError, match=r"layer is 'tokens', and only a network of torch has layers"):
        caching.cache_responses(keys(layer="tokens"))
    write_h5(features, "b", grid(shift=(64, 0)))
    with pytest.raises(InputError, match=r"b\.h5 lie on another grid"):
        caching.cache_responses(keys())


def test_they_cannot_run_live(features: Path) -> None:
    with pytest.raises(InputError, match=r"teacher\.features answers no pixels, so that it cannot run live; cache it"):
        validate(
            EmbeddingTeacher, {"teacher": {"features": {"folder": str(features)}}, "normalize": "none"}, "the test"
        )
