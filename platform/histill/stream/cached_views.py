"""The views of each tile that a teacher has answered ahead of training, and how an epoch comes back to them.

With one fixed view of each tile a student overfits, and with another view than the teacher's it learns wrong answers
(Beyer et al. 2022, arXiv 2106.05237). So a cache may hold several views, whose geometry is not stored but drawn again
from a seed, as in FKD (Shen & Xing 2022, arXiv 2112.01528) and TinyViT (Wu et al. 2022, arXiv 2207.10666).
"""

from dataclasses import dataclass

import numpy as np

from histill.config.augment import Augment
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.uris import folder_name
from histill.stream.responses import map_columns, response_columns
from histill.stream.views import UPRIGHT, Placement, Views, draw_numbers, draw_placements

_STRIDE = 32  # of every network: the sides at which students see tiles are multiples of it
_COARSEST = Views(_STRIDE)
"""Windows that are whole pixels for a student of 32 px are so for every larger one, since its side is a multiple."""
_THE_TEACHERS = 2**63 - 1
"""Stands for the appearance of a tile: no epoch has as many, so that a run of the same seed draws other numbers."""


@dataclass(frozen=True)
class CachedViews:
    """A cache of responses and the views that it answers; the upright whole tile when there is one view only.

    A view is a function of (seed, view, tile), like that of an epoch, whoever asks for it and when.
    """

    uri: str
    outputs: OutputSpec  # of the teacher
    views: int = 1
    seed: int = 0
    augment: Augment = UPRIGHT  # windows and symmetries; no colors
    map_shape: tuple[int, int, int] | None = None  # [C, h, w] of its feature maps, if any are kept

    @property
    def name(self) -> str:
        """The address of what they answer, which is their folder's name and stands in each shard."""
        return folder_name(self.uri)

    def view_of(self, epoch: int) -> int:
        """The view that `epoch` learns from: each in turn."""
        return epoch % self.views

    def column(self, view: int) -> str:
        """The shards' column with the responses to `view`."""
        return response_columns(self.views)[view]

    def map_column(self, view: int) -> str:
        """The shards' column with the teacher's feature maps of `view`, if any are kept."""
        return map_columns(self.views)[view]

    def placements(self, view: int, tiles: np.ndarray, tile_px: int) -> list[Placement]:
        """Where `view` lies in each of `tiles` (int64, rows of the manifest)."""
        draws = draw_numbers(self.seed, view, tiles, np.full(len(tiles), _THE_TEACHERS))
        return draw_placements(self.augment, draws, tile_px, _COARSEST)


def check_crop(augment: Augment, tile_px: int) -> None:
    """Raises InputError when no student could learn from the window of `augment`, whatever the side it sees."""
    side = augment.crop_px
    if side is None or side in (fitting := _learnable_sides(tile_px)):
        return
    raise InputError(
        f"augment.crop_px is {side}, and at no size of a student is that part of a tile of {tile_px} px a multiple of "
        f"{_STRIDE} px; choose one of {', '.join(map(str, fitting))}."
    )


def _learnable_sides(tile_px: int) -> list[int]:
    """Sides of windows that some student, at a multiple of the stride, sees at a multiple of the stride."""
    most = tile_px // _STRIDE
    return [px for px in range(_STRIDE, tile_px + 1) if any(px * by % tile_px == 0 for by in range(1, most + 1))]
