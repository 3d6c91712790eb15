"""What a task makes of the row groups of a chunk: views, and masks as the window shows them."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from histill.config.augment import Augment
from histill.stream.decode import decompress_mask
from histill.stream.decode_spec import DecodeSpec
from histill.stream.encoded import list_encoded_rows
from histill.stream.ray_data.decode import decode_views
from histill.stream.views import Views

pytestmark = pytest.mark.unit

SIDE, WINDOW = 64, 32
TILES = 3
DAMAGED = 1


def encode(image: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()


def test_a_mask_crosses_as_the_window_shows_it_and_as_it_is_if_damaged() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (TILES, SIDE, SIDE, 3), np.uint8)
    stored = [encode(np.ascontiguousarray(image[..., 0])) for image in images]  # a mask that is the red channel
    stored[DAMAGED] = stored[DAMAGED][:50]
    tables = [
        pa.table({"entry": [tile], "image": [encode(images[tile])], "mask": [stored[tile]]}) for tile in range(TILES)
    ]
    how = DecodeSpec(SIDE, Views(SIDE), Augment(flips=True, crop_px=WINDOW), 3, 0, None, True, 1, 0)
    found = decode_views(tables, np.arange(TILES), np.zeros(TILES, np.int64), how)
    assert set(found.column_names) == {"entry", "mask", "window_mask", "view:0", "fault"}
    rows = dict(list_encoded_rows(found))
    assert list(rows) == [0, 1, 2]
    for tile, row in rows.items():
        assert row.fault is None
        view = np.frombuffer(row.views[0], np.uint8).reshape(WINDOW, WINDOW, 3)
        if tile == DAMAGED:
            assert row.window_mask is None
            assert bytes(row.mask or b"") == stored[DAMAGED]  # the trainer says what is wrong with it
        else:
            assert row.mask is None
            assert row.window_mask is not None
            assert np.array_equal(decompress_mask(row.window_mask, WINDOW), view[..., 0])
