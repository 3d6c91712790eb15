"""Images and masks: kept, converted or refused by name."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histill.config.common import Storage
from histill.config.ingest_tiles import Columns, ImageSource
from histill.errors import InputError
from histill.tiles.image_index import image_rows
from histill.tiles.images import check_image, normalize_mask, read_images
from histill.tiles.shards import Tile
from histill.tiles.sources import Unreadable

pytestmark = pytest.mark.unit

STORAGE = Storage()
PX = 64
RGB = np.random.default_rng(0).integers(0, 256, (PX, PX, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_rgb_jpeg_and_png_are_kept_byte_for_byte(kind: str) -> None:
    data = encoded(RGB, kind)
    assert check_image(data, "a", PX) == data


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_other_formats_become_png(kind: str) -> None:
    data = check_image(encoded(RGB, kind), "a", PX)
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(decoded(data), RGB)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1"])
def test_other_colors_become_rgb(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    data = check_image(encoded(image, "PNG"), "a", PX)
    assert decoded(data).shape == (PX, PX, 3)


def test_sixteen_bits_are_refused() -> None:
    with pytest.raises(Unreadable, match=r"deep\.tif has more than 8 bits"):
        check_image(encoded(np.zeros((PX, PX), dtype=np.uint16), "TIFF"), "deep.tif", PX)


@pytest.mark.parametrize("shape", [(PX, PX + 1), (PX - 1, PX), (2 * PX, 2 * PX)])
def test_other_sizes_are_refused_with_both(shape: tuple[int, int]) -> None:
    data = encoded(np.zeros((*shape, 3), dtype=np.uint8), "PNG")
    with pytest.raises(Unreadable, match=rf"b\.png is {shape[1]} x {shape[0]} px and {PX} x {PX} was expected"):
        check_image(data, "b.png", PX)


def test_every_truncation_of_a_jpeg_is_found() -> None:
    data = encoded(RGB, "JPEG", quality=90)
    for length in range(0, len(data) - 2, 37):
        with pytest.raises(Unreadable, match=r"c\.jpg"):
            check_image(data[:length], "c.jpg", PX)


def test_damage_inside_a_jpeg_is_found() -> None:
    data = bytearray(encoded(RGB, "JPEG", quality=90))
    middle = len(data) // 2
    data[middle : middle + 60] = b"\xff\xd9" * 30
    with pytest.raises(Unreadable, match=r"c\.jpg"):
        check_image(bytes(data), "c.jpg", PX)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(Unreadable, match=r"d\.png cannot be decoded"):
        check_image(data, "d.png", PX)


BINARY = RGB[..., 0] > 128


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(BINARY),
        Image.fromarray(BINARY.astype(np.uint8) * 255),
        Image.fromarray(BINARY.astype(np.uint8)),
        Image.fromarray(np.repeat(BINARY[..., None].astype(np.uint8) * 255, 3, axis=2)),
    ],
    ids=["one bit", "0 and 255", "0 and 1", "gray RGB"],
)
def test_two_valued_masks_become_0_and_1(mask: Image.Image) -> None:
    result = decoded(normalize_mask(encoded(mask, "PNG"), "m", "i", PX))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, BINARY)


def test_class_indices_stay() -> None:
    classes = RGB[..., 0] % 7
    np.testing.assert_array_equal(decoded(normalize_mask(encoded(classes, "PNG"), "m", "i", PX)), classes)
    palette = Image.fromarray(classes, mode="P")
    palette.putpalette(range(21))
    np.testing.assert_array_equal(decoded(normalize_mask(encoded(palette, "PNG"), "m", "i", PX)), classes)


def test_masks_that_are_refused() -> None:
    with pytest.raises(Unreadable, match=r"m\.png is 32 x 64 px and its image i\.png is 64 x 64"):
        normalize_mask(encoded(np.zeros((PX, 32), dtype=np.uint8), "PNG"), "m.png", "i.png", PX)
    with pytest.raises(Unreadable, match=r"m\.png holds colors"):
        normalize_mask(encoded(RGB, "PNG"), "m.png", "i.png", PX)
    with pytest.raises(Unreadable, match=r"m\.png holds colors or values above 255"):
        normalize_mask(encoded(np.full((PX, PX), 300, dtype=np.uint16), "PNG"), "m.png", "i.png", PX)


def source(folder: Path, text: str, **columns: str) -> ImageSource:
    (folder / "index.csv").write_text(text)
    return ImageSource(index=str(folder / "index.csv"), columns=Columns(**columns), mpp=0.25)


def test_index_of_images(tmp_path: Path) -> None:
    rows = image_rows(
        source(tmp_path, "image,organ,mask\na.png,007,m.png\nb.png,8,\n", case="organ", mask="mask", label="organ"),
        STORAGE,
    )
    assert [(row.name, row.case, row.label) for row in rows] == [("a.png", "007", "007"), ("b.png", "8", "8")]
    assert [row.mask for row in rows] == [str(tmp_path / "m.png"), None]


def test_label_and_mask_are_taken_where_the_index_has_them(tmp_path: Path) -> None:
    whole = image_rows(source(tmp_path, "image,label,mask,case\na.png,polyp,m.png,7\n"), STORAGE)
    assert [(row.label, row.mask) for row in whole] == [("polyp", str(tmp_path / "m.png"))]
    bare = image_rows(source(tmp_path, "image,case\na.png,7\n"), STORAGE)
    assert [(row.label, row.mask) for row in bare] == [(None, None)]
    with pytest.raises(InputError, match="no column 'mask'; it has image, case"):
        image_rows(source(tmp_path, "image,case\na.png,7\n", mask="mask"), STORAGE)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({}, "no column 'case'; it has image, organ"),
        ({"case": "organ", "mask": "masks"}, "no column 'masks'; it has image, organ"),
        ({"case": "organ", "label": "kind"}, "no column 'kind'"),
        ({"case": "organ", "image": "file"}, "no column 'file'"),
        ({"case": "organ"}, "names the image a.png twice"),
    ],
)
def test_refused_indices(tmp_path: Path, columns: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        image_rows(source(tmp_path, "image,organ\na.png,x\na.png,y\n", **columns), STORAGE)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        image_rows(ImageSource(index=str(tmp_path / "none.csv"), mpp=1.0), STORAGE)


def test_good_and_bad_rows_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RGB, "PNG"))
    (tmp_path / "c.png").write_bytes(encoded(RGB, "PNG")[:200])
    rows = image_rows(source(tmp_path, "image,case\na.png,1\nb.png,1\nc.png,1\n"), STORAGE)
    good, missing, torn = read_images(rows, PX, 0.25, STORAGE)
    assert isinstance(good, Tile)
    assert (good.tile_id, good.case, good.mpp, good.mask) == ("a.png", "1", 0.25, None)
    assert isinstance(missing, Unreadable)
    assert "b.png does not exist" in str(missing)
    assert isinstance(torn, Unreadable)
    assert "line 4 of the index: " in str(torn)
    assert "c.png" in str(torn)
