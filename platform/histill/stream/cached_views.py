"""The augmented views for which a teacher's responses are cached, and how an epoch reproduces them.

With a single fixed view of each tile a student overfits, and with a view that differs from the teacher's it learns from
wrong targets (Beyer et al. 2022, arXiv 2106.05237). So a cache may hold several views. Their geometry is not stored but
redrawn from a seed, as in FKD (Shen & Xing 2022, arXiv 2112.01528) and TinyViT (Wu et al. 2022, arXiv 2207.10666).
"""

from dataclasses import dataclass

import numpy as np

from histill.config.augment import Augment
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.uris import folder_name
from histill.stream.responses import map_columns, response_columns
from histill.stream.views import UPRIGHT, Placement, Views, draw_numbers, draw_placements

_STRIDE = 32  # of every network: students see tiles at sides that are multiples of it
_COARSEST = Views(_STRIDE)
"""A window of whole pixels for a student of 32 px has whole pixels for every larger one, whose side is a multiple."""
_THE_TEACHERS = 2**63 - 1
"""Used as a tile's repeat number: no epoch has that many, so that a run with the same seed draws other numbers."""


@dataclass(frozen=True)
class CachedViews:
    """A response cache and the views that it was computed for; a single view is the upright whole tile.

    A view is a pure function of (seed, view, tile), as that of an epoch is of (seed, epoch, tile).
    """

    uri: str
    outputs: OutputSpec  # of the teacher
    views: int = 1
    seed: int = 0
    augment: Augment = UPRIGHT  # windows and symmetries; no colors
    map_shape: tuple[int, int, int] | None = None  # [C, h, w] of the teacher's feature maps, if any are cached

    @property
    def name(self) -> str:
        """The content address of the cache: the name of its folder, which is also recorded in each shard."""
        return folder_name(self.uri)

    def view_of(self, epoch: int) -> int:
        """The view that `epoch` learns from; epochs cycle through the views."""
        return epoch % self.views

    def column(self, view: int) -> str:
        """Name of the shards' column with the responses to `view`."""
        return response_columns(self.views)[view]

    def map_column(self, view: int) -> str:
        """Name of the shards' column with the teacher's feature maps of `view`, if any are cached."""
        return map_columns(self.views)[view]

    def placements(self, view: int, tiles: np.ndarray, tile_px: int) -> list[Placement]:
        """The placement of `view` in each of `tiles` (int64, rows of the manifest)."""
        draws = draw_numbers(self.seed, view, tiles, np.full(len(tiles), _THE_TEACHERS))
        return draw_placements(self.augment, draws, tile_px, _COARSEST)


def check_crop(augment: Augment, tile_px: int) -> None:
    """Raise InputError when no student, whatever its size, could learn from the window that `augment` crops."""
    side = augment.crop_px
    if side is None or side in (fitting := _learnable_sides(tile_px)):
        return
    raise InputError(
        f"augment.crop_px is {side}, but no student, whatever its size, sees such a window of a tile of {tile_px} px "
        f"at a multiple of {_STRIDE} px; choose one of {', '.join(map(str, fitting))}.",
        code="size-does-not-fit",
    )


def _learnable_sides(tile_px: int) -> list[int]:
    """The window sides that some student, itself at a multiple of the stride, sees at a multiple of the stride."""
    most = tile_px // _STRIDE
    return [px for px in range(_STRIDE, tile_px + 1) if any(px * by % tile_px == 0 for by in range(1, most + 1))]
