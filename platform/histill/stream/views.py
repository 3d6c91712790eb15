"""Paired views: what student and teacher see of one tile, from one decode and one geometry."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histill.config.augment import Augment
from histill.errors import InputError
from histill.stream import color
from histill.stream.counter_rng import draw_uniform
from histill.stream.decode import decode_image, downscale_area, reduction_for
from histill.stream.geometry import apply_symmetry

UPRIGHT = Augment(flips=False)
"""No augmentation."""


@dataclass(frozen=True)
class Views:
    """The sides, in pixels, at which student and teacher see a whole tile; `teacher_px` is None without a live teacher.

    A side of `size_px` shows a tile of `tile_px` pixels at `tile_px / size_px` times its microns per pixel.
    """

    student_px: int
    teacher_px: int | None = None

    @property
    def sides(self) -> tuple[int, ...]:
        return (self.student_px,) if self.teacher_px is None else (self.student_px, self.teacher_px)


@dataclass(frozen=True)
class Placement:
    """The geometry of one tile: a window (pixels of the tile) and one of the 8 symmetries of the square."""

    left: int
    top: int
    side: int
    symmetry: int


def crop_grid(tile_px: int, views: Views) -> int:
    """The grid, in tile pixels, for a window's side and offsets, so that it has whole pixels in every view."""
    return math.lcm(*(tile_px // math.gcd(tile_px, side) for side in views.sides))


def check_window(augment: Augment, tile_px: int, views: Views, stride: int = 32) -> None:
    """Raise InputError when the window that `augment` crops does not fit the tile or a view.

    `stride` is that of the student's network: the sides of its inputs must be multiples of it.
    """
    side = augment.crop_px
    if side is None:
        return
    grid = crop_grid(tile_px, views)
    if side > tile_px or side % grid or view_input_px(views.student_px, side, tile_px) % stride:
        fitting = [
            px for px in range(grid, tile_px + 1, grid) if view_input_px(views.student_px, px, tile_px) % stride == 0
        ]
        raise InputError(
            f"augment.crop_px is {side}, but for a tile of {tile_px} px that the network sees at {views.student_px} px "
            f"only windows of {', '.join(map(str, fitting))} px are "
            f"{f'multiples of {stride}' if stride > 1 else 'whole pixels'} there; choose one of these.",
            code="size-does-not-fit",
        )


def check_sides(views: Views, tile_px: int) -> None:
    """Raise InputError when a view would show a tile larger than it is."""
    for name, side in (("student_px", views.student_px), ("teacher_px", views.teacher_px)):
        if side is not None and side > tile_px:
            raise InputError(
                f"{name} is {side}, more than the tiles' own {tile_px} px; take {tile_px} or less.",
                code="resolution-too-fine",
            )


def crop_and_orient(plane: np.ndarray, place: Placement) -> np.ndarray:
    """Crop a whole tile's `plane`, [H, W] or [H, W, C], to the window of `place` and apply its symmetry."""
    window = plane[place.top : place.top + place.side, place.left : place.left + place.side]
    return apply_symmetry(window, place.symmetry)


def view_input_px(view_px: int, window_px: int, tile_px: int) -> int:
    """The side of a window of `window_px` tile pixels in a view that shows the whole tile at `view_px`."""
    return view_px * window_px // tile_px


def draw_placements(augment: Augment, draws: np.ndarray, tile_px: int, views: Views) -> list[Placement]:
    """A placement for each row of `draws` (float64 [tiles, >= 3], in [0, 1))."""
    side, grid = augment.crop_px or tile_px, crop_grid(tile_px, views)
    offsets = (draws[:, 1:3] * ((tile_px - side) // grid + 1)).astype(int) * grid
    symmetries = (draws[:, 0] * 8).astype(int) if augment.flips else np.zeros(len(draws), int)
    drawn = zip(offsets.tolist(), symmetries.tolist(), strict=True)
    return [Placement(left, top, side, symmetry) for (left, top), symmetry in drawn]


def draw_numbers(seed: int, epoch: int, tiles: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """The random draws that augment each tile, float64 [tiles, 3 + color.DRAWS]."""
    return draw_uniform(seed, epoch, tiles, copies, 3 + color.DRAWS)


def view_into(
    out: Sequence[np.ndarray],
    data: bytes | memoryview,
    tile_px: int,
    views: Views,
    place: Placement,
    colors: tuple[np.ndarray, Augment] | None,
    *,
    decoded_px: int | None = None,
) -> None:
    """Decode a tile once and write its views into `out` (uint8 [side, side, 3] each): the student's, the teacher's.

    `data` are the bytes of a JPEG or PNG or, if `decoded_px` is not None, the pixels of the whole tile at that side,
    which is that of the larger view. `colors` (draws and the jitter that they drive) applies to the student's view
    only, unless colors are shared. Raises CorruptTile.
    """
    largest = max(views.sides)
    whole = place.side == tile_px
    if decoded_px is None:
        reduction = reduction_for(tile_px, largest)
        if not whole:
            reduction = math.gcd(reduction, crop_grid(tile_px, views))
        target = out[views.sides.index(largest)]
        direct = whole and place.symmetry == 0 and target.shape[0] == tile_px // reduction
        shown_px = tile_px // reduction
        shown = decode_image(data, tile_px, reduction, into=target if direct else None)
        if shown is target and colors is None and len(out) == 1:
            return
    else:
        shown_px = decoded_px
        shown = np.frombuffer(data, np.uint8).reshape(decoded_px, decoded_px, 3)
    if not whole:  # whole pixels, since windows lie on the grid of the views
        top, left, side = (view_input_px(shown_px, value, tile_px) for value in (place.top, place.left, place.side))
        shown = shown[top : top + side, left : left + side]
    if colors is not None and colors[1].shared_colors:
        shown, colors = color.jitter_colors(shown, *colors), None
    for number, view in reversed(list(enumerate(out))):  # the student's last: its memory may hold the tile
        as_is = place.symmetry == 0 and (number > 0 or colors is None)
        seen = apply_symmetry(downscale_area(shown, view.shape[0], view if as_is else None), place.symmetry)
        if number == 0 and colors is not None:
            seen = color.jitter_colors(seen, *colors)
        if not np.may_share_memory(seen, view):
            np.copyto(view, seen)


def decode_view(data: bytes | memoryview, tile_px: int, side: int) -> bytes:
    """Decode a whole tile at `side` to the pixels that `view_into` takes. Raises CorruptTile."""
    return downscale_area(decode_image(data, tile_px, reduction_for(tile_px, side)), side).tobytes()
