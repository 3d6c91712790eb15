"""Show a tile: which window, at which sides, from which bytes. Free of torch, so that tasks start quickly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from histill.config.augment import Augment
from histill.stream.cached_views import CachedViews
from histill.stream.decode import CorruptTile, decode_mask, decompress_mask
from histill.stream.encoded import EncodedRow
from histill.stream.geometry import compose_symmetries
from histill.stream.read import TileSource
from histill.stream.views import Placement, Views, crop_and_orient, draw_placements, view_input_px, view_into
from histill.tiles.labels import TileLabels


@dataclass(frozen=True)
class DecodeSpec:
    """How encoded rows are decoded into a batch."""

    tile_px: int
    views: Views
    augment: Augment
    seed: int
    epoch: int
    labels: TileLabels | None
    masks: bool
    threads: int
    max_corrupt: int
    responses: CachedViews | None = None
    maps: bool = False  # also decode the teacher's feature maps
    embeddings: tuple[tuple[str, CachedViews], ...] = ()  # caches of embeddings by teacher, all of the same views

    @property
    def answered(self) -> CachedViews | None:
        """The cached views that the responses belong to; None if they belong to upright whole tiles."""
        cached = self.responses or next((cached for _, cached in self.embeddings), None)
        return cached if cached is not None and cached.views > 1 else None

    @property
    def window_px(self) -> int:
        """Side of the window that a batch shows of a tile, in tile pixels."""
        return (self.answered or self).augment.crop_px or self.tile_px

    @property
    def shown_px(self) -> list[int]:
        """Side of the window in each view."""
        return [view_input_px(side, self.window_px, self.tile_px) for side in self.views.sides]

    def response_shape(self, side_px: int) -> tuple[int, int, int]:
        """Shape [C, H, W] of the response to a tile or window of `side_px`."""
        assert self.responses is not None
        side = side_px if self.responses.outputs.dense else 1
        return self.responses.outputs.packed_channels, side, side

    @property
    def map_shape(self) -> tuple[int, int, int] | None:
        """Shape [C, h, w] of the teacher's feature maps; None if they are not decoded."""
        return self.responses.map_shape if self.maps and self.responses is not None else None


@dataclass(frozen=True)
class PassSpec:
    """What is read for a pass, and how it is decoded."""

    source: TileSource
    how: DecodeSpec

    def of_epoch(self, epoch: int) -> "PassSpec":
        """The same for another pass of its series, which may show other cached views."""
        source, cached = self.source, self.how.responses or next((each for _, each in self.how.embeddings), None)
        if cached is not None:
            source = replace(source, view=cached.view_of(epoch))
        return PassSpec(source, replace(self.how, epoch=epoch))


def place_tiles(tiles: np.ndarray, draws: np.ndarray, how: DecodeSpec) -> tuple[list[Placement], list[Placement]]:
    """Return the placements of the tiles' views and of their stored responses.

    If the responses belong to cached views, the epoch's cached view is shown, and the run's own flips are applied on
    top of it, to view and response alike.
    """
    if how.answered is None:
        places = draw_placements(how.augment, draws, how.tile_px, how.views)
        return places, places
    side = how.window_px
    answers = draw_placements(Augment(flips=how.augment.flips), draws, side, Views(side))
    seen = how.answered.placements(how.answered.view_of(how.epoch), tiles, how.tile_px)
    turns = [compose_symmetries(view.symmetry, answer.symmetry) for view, answer in zip(seen, answers, strict=True)]
    return [replace(view, symmetry=turn) for view, turn in zip(seen, turns, strict=True)], answers


def show_tile(out: Sequence[np.ndarray], row: EncodedRow, place: Placement, draws: np.ndarray, how: DecodeSpec) -> None:
    """Write a tile's views into `out` (uint8 [side, side, 3] each); `draws` jitter colors. Raises CorruptTile."""
    if row.fault is not None:
        raise CorruptTile(row.fault)
    if row.views:
        for view, pixels in zip(out, row.views, strict=True):
            np.copyto(view, np.frombuffer(pixels, np.uint8).reshape(view.shape))
        return
    colors = (draws, how.augment) if how.augment.colors else None
    data, decoded_px = (row.image, None) if row.pixels is None else (row.pixels, max(how.views.sides))
    if not data:
        raise CorruptTile("its bytes are not those that the manifest names")
    view_into(out, data, how.tile_px, how.views, place, colors, decoded_px=decoded_px)


def show_mask(row: EncodedRow, place: Placement, how: DecodeSpec) -> np.ndarray:
    """What the window shows of a tile's mask, uint8 [window_px, window_px]. Raises CorruptTile."""
    if row.window_mask is not None:
        return decompress_mask(row.window_mask, how.window_px)
    if row.mask is None:
        raise CorruptTile("it has no mask")
    return crop_and_orient(decode_mask(row.mask, how.tile_px), place)
