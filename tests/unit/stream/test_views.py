"""Paired views: one decode, one geometry for all data of a tile, color jitter for the student only."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histill.config.augment import Augment
from histill.errors import InputError
from histill.stream import views as module
from histill.stream.color import DRAWS, jitter_colors
from histill.stream.decode import decode_image, downscale_area
from histill.stream.views import (
    UPRIGHT,
    Placement,
    Views,
    check_window,
    crop_grid,
    draw_numbers,
    draw_placements,
    view_input_px,
    view_into,
)

pytestmark = pytest.mark.unit

TILE = 64
WHOLE = Placement(0, 0, TILE, 0)
JITTER = Augment(flips=False, stain=0.2, brightness=0.3, contrast=0.3, saturation=0.3)
Draw = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(array: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(array, quality=95, colorsubsampling="444")


def seen(data: bytes, views: Views, place: Placement = WHOLE, colors: Any = None, tile: int = TILE) -> list[np.ndarray]:
    sides = [view_input_px(side, place.side, tile) for side in views.sides]
    out = [np.full((side, side, 3), 99, np.uint8) for side in sides]
    view_into(out, data, tile, views, place, colors)
    return out


def placed(plane: np.ndarray, place: Placement) -> np.ndarray:
    """The window, turned counter-clockwise by quarters, then mirrored from left to right."""
    window = plane[place.top : place.top + place.side, place.left : place.left + place.side]
    window = np.rot90(window, place.symmetry % 4)
    return window[:, ::-1] if place.symmetry >= 4 else window


def area_averages(image: np.ndarray, side: int) -> np.ndarray:
    by = image.shape[0] // side
    return image.astype(np.float64).reshape(side, by, side, by, 3).mean((1, 3))


@pytest.mark.parametrize("encode", [png, jpeg])
@pytest.mark.parametrize("place", [WHOLE, Placement(0, 0, TILE, 5), Placement(16, 32, 32, 3)], ids=str)
@pytest.mark.parametrize("views", [Views(32), Views(16, 64), Views(64, 64), Views(32, 16)], ids=str)
def test_both_views_come_from_one_decode(
    monkeypatch: pytest.MonkeyPatch, draw_tile: Draw, encode: Any, place: Placement, views: Views
) -> None:
    calls = []

    def counted(data: bytes, size_px: int, reduction: int = 1, **rest: Any) -> np.ndarray:
        calls.append(reduction)
        return decode_image(data, size_px, reduction, **rest)

    monkeypatch.setattr(module, "decode_image", counted)
    seen(encode(draw_tile(0, TILE)[0]), views, place, (np.full(DRAWS, 0.7), JITTER))
    assert len(calls) == 1
    if place.side == TILE:  # decodes no more than the larger view needs
        assert calls == [TILE // max(views.sides)]


@settings(max_examples=40)
@given(st.integers(0, 50), st.integers(0, 7), st.sampled_from([8, 16, 32, 64]), st.booleans())
def test_the_students_view_is_the_teachers_averaged_over_areas(
    draw_tile: Draw, seed: int, symmetry: int, side: int, cropped: bool
) -> None:
    place = Placement(16, 24, 32, symmetry) if cropped else Placement(0, 0, TILE, symmetry)
    student, teacher = seen(png(draw_tile(seed, TILE)[0]), Views(side, TILE), place)
    assert teacher.shape[0] == place.side
    assert student.shape[0] == place.side * side // TILE
    expected = area_averages(teacher, student.shape[0])
    assert np.abs(student - expected).max() <= (1.0 if side >= 16 else 1.5)  # each halving rounds


coordinates = np.stack(
    [*np.mgrid[:TILE, :TILE] * 4, np.add.outer(np.arange(TILE), np.arange(TILE)) * 2], axis=-1
).astype(np.uint8)
"""A tile whose colors encode the position of each pixel."""

positions = st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([32, 64]), st.integers(0, 7)).map(
    lambda drawn: (
        Placement(drawn[0] * 8, drawn[1] * 8, drawn[2], drawn[3]) if drawn[2] == 32 else Placement(0, 0, 64, drawn[3])
    )
)


@settings(max_examples=80)
@given(positions, st.sampled_from([Views(64), Views(16, 64), Views(64, 64), Views(32, 16), Views(8)]))
def test_a_placement_is_the_same_window_and_symmetry_in_every_view(place: Placement, views: Views) -> None:
    expected = placed(coordinates, place)
    for view in seen(png(coordinates), views, place):
        assert np.abs(view - area_averages(expected, view.shape[0])).max() <= 1.5
    for view in seen(jpeg(coordinates), views, place):
        assert np.abs(view - area_averages(expected, view.shape[0])).mean() < 2


def test_a_window_at_full_size_is_exact() -> None:
    for symmetry in range(8):
        place = Placement(8, 24, 40, symmetry)
        (view,) = seen(png(coordinates), Views(TILE), place)
        assert np.array_equal(view, placed(coordinates, place))


@pytest.mark.parametrize("encode", [png, jpeg])
@pytest.mark.parametrize("symmetry", [0, 6])
@pytest.mark.parametrize("views", [Views(16, 64), Views(64, 64), Views(32, 32), Views(32, 16)], ids=str)
@pytest.mark.parametrize("side", [32, TILE])
def test_color_is_the_students_alone(draw_tile: Draw, encode: Any, symmetry: int, views: Views, side: int) -> None:
    data = encode(draw_tile(1, TILE)[0])
    place = Placement(0, 0, side, symmetry)
    draws = np.random.default_rng(0).random(DRAWS)
    plain, varied = seen(data, views, place), seen(data, views, place, (draws, JITTER))
    assert np.array_equal(varied[1], plain[1])
    assert not np.array_equal(varied[0], plain[0])
    assert np.array_equal(varied[0], jitter_colors(plain[0], draws, JITTER))


@pytest.mark.parametrize("symmetry", [0, 6])
@pytest.mark.parametrize("views", [Views(16, 64), Views(64, 64), Views(32, 16)], ids=str)
def test_colors_can_be_shared_by_the_pair(draw_tile: Draw, symmetry: int, views: Views) -> None:
    data, place = png(draw_tile(1, TILE)[0]), Placement(0, 0, TILE, symmetry)
    draws = np.random.default_rng(0).random(DRAWS)
    shared = JITTER.model_copy(update={"shared_colors": True})
    plain, varied = seen(data, Views(max(views.sides)), place), seen(data, views, place, (draws, shared))
    colored = jitter_colors(plain[0], draws, JITTER)
    for view in varied:
        expected = downscale_area(colored, view.shape[0])
        assert np.abs(view.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("tile_px", "views", "grid"),
    [
        (512, Views(512), 1),
        (512, Views(128), 4),
        (512, Views(128, 512), 4),
        (512, Views(192), 8),
        (512, Views(128, 192), 8),
        (250, Views(100, 250), 5),
        (256, Views(224), 8),
    ],
)
def test_windows_are_whole_pixels_in_every_view(tile_px: int, views: Views, grid: int) -> None:
    assert crop_grid(tile_px, views) == grid
    for side in views.sides:
        assert grid * side % tile_px == 0
        assert view_input_px(side, tile_px, tile_px) == side
        assert view_input_px(side, grid, tile_px) == grid * side // tile_px


@pytest.mark.parametrize(("crop_px", "student_px"), [(None, 128), (512, 128), (128, 128), (384, 128), (96, 512)])
def test_windows_that_fit_pass(crop_px: int | None, student_px: int) -> None:
    check_window(Augment(crop_px=crop_px), 512, Views(student_px, 512))


@pytest.mark.parametrize(("crop_px", "student_px"), [(544, 128), (130, 128), (64, 128), (200, 512), (320, 192)])
def test_windows_that_do_not_fit_are_refused(crop_px: int, student_px: int) -> None:
    with pytest.raises(InputError) as caught:
        check_window(Augment(crop_px=crop_px), 512, Views(student_px, 512))
    message = str(caught.value)
    assert message.startswith(f"augment.crop_px is {crop_px}, but for a tile of 512 px")
    assert "\n" not in message
    offered = [int(px) for px in message.partition("only windows of ")[2].partition(" px")[0].split(", ")]
    assert offered[-1] == 512
    for px in offered:
        check_window(Augment(crop_px=px), 512, Views(student_px, 512))


@given(st.integers(0, 2**40), st.sampled_from([(32, 16), (64, 64), (32, 64), (48, 32)]))
def test_placements_lie_within_the_tile_and_on_the_grid(seed: int, sides: tuple[int, int]) -> None:
    crop, student = sides
    views = Views(student, TILE)
    draws = draw_numbers(seed, 0, np.arange(50), np.zeros(50, np.int64))
    assert draws.shape == (50, 3 + DRAWS)
    grid = crop_grid(TILE, views)
    for place in draw_placements(Augment(crop_px=crop), draws, TILE, views):
        assert place.side == crop
        for offset in (place.left, place.top):
            assert 0 <= offset <= TILE - crop
            assert offset % grid == 0
        assert 0 <= place.symmetry < 8


def test_placements_are_even() -> None:
    draws = draw_numbers(3, 1, np.arange(8000), np.zeros(8000, np.int64))
    places = draw_placements(Augment(crop_px=32), draws, TILE, Views(16, TILE))
    for counts in (
        np.bincount([place.symmetry for place in places], minlength=8),
        np.bincount([place.left // 4 for place in places], minlength=9),
        np.bincount([place.top // 4 for place in places], minlength=9),
    ):
        expected = 8000 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 32  # 8 degrees of freedom: exceeded once in 10 000
    pairs = {(place.left, place.top, place.symmetry) for place in places}
    assert len(pairs) == 9 * 9 * 8


def test_without_flips_and_crops_a_tile_stays_as_it_is() -> None:
    draws = draw_numbers(3, 1, np.arange(20), np.zeros(20, np.int64))
    assert set(draw_placements(UPRIGHT, draws, TILE, Views(16))) == {WHOLE}
    assert not UPRIGHT.colors
