"""Read a segmenter's answers for a slide as one picture, window by window."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from histill.models.resample import resize_logits
from histill.outputs import OutputSpec
from histill.stream.responses import decode_levels, levels_to_logits


@dataclass(frozen=True)
class TilePlaces:
    """Where tiles of a slide lie, int64 [N] each, ordered by shard: in its files, and in its picture."""

    shards: np.ndarray  # positions among the slide's shards
    numbers: np.ndarray  # among the slide's decodable tiles of that shard
    columns: np.ndarray  # left edges, in pixels of the tiles' resolution
    rows: np.ndarray  # top edges

    def take(self, tiles: np.ndarray) -> "TilePlaces":
        """Some of the tiles, int64, ascending."""
        return TilePlaces(self.shards[tiles], self.numbers[tiles], self.columns[tiles], self.rows[tiles])


@dataclass(frozen=True)
class SlidePixels:
    """Probabilities for each pixel of a slide at the tiles' resolution, counted from the corner of level 0.

    Where tiles overlap, a pixel is that of the tile whose edge is farthest from it, which has seen most around it.
    """

    outputs: OutputSpec
    answers: pa.ChunkedArray  # binary [N], logits as `stream.responses` stores them
    columns: np.ndarray  # int64 [N]: left edges of tiles
    rows: np.ndarray  # int64 [N]: top edges
    answer_px: int  # side of an answer
    tile_px: int
    scale: float  # level-0 pixels per pixel
    mpp: float  # um/px

    def window(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """float32 [K, height, width]; where no tile was predicted, all is background."""
        found = np.zeros((len(self.outputs.classes), height, width), np.float32)
        found[0] = 1
        nearest, depth = np.zeros((height, width), np.int64), _depth(self.tile_px)
        for index in self.within(left, top, width, height).tolist():
            x, y = int(self.columns[index]) - left, int(self.rows[index]) - top
            right, bottom = min(x + self.tile_px, width), min(y + self.tile_px, height)
            here = slice(max(y, 0), bottom), slice(max(x, 0), right)
            there = slice(max(y, 0) - y, bottom - y), slice(max(x, 0) - x, right - x)
            better = depth[there] > nearest[here]
            nearest[here][better] = depth[there][better]
            found[:, *here][:, better] = self._read(index)[:, *there][:, better]
        return found

    def blocks(self, side: int, margin: int = 0) -> list[tuple[int, int]]:
        """Column and row of the blocks of `side` pixels, from the corner of level 0, that a tile reaches, by row.

        With `margin`, a tile reaches that many pixels farther.
        """
        reached: set[tuple[int, int]] = set()
        for x, y in set(zip(self.columns.tolist(), self.rows.tolist(), strict=True)):
            across, down = (
                range((begin - margin) // side, (begin + self.tile_px - 1 + margin) // side + 1) for begin in (x, y)
            )
            reached |= {(column, row) for column in across for row in down}
        return sorted(reached, key=lambda place: (place[1], place[0]))

    def has_tiles(self, left: int, top: int, width: int, height: int) -> bool:
        """Whether any tile shares a pixel with a window."""
        return len(self.within(left, top, width, height)) > 0

    def within(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        """The tiles that share a pixel with a window, int64, ascending."""
        shares = (self.columns < left + width) & (self.columns + self.tile_px > left)
        shares &= (self.rows < top + height) & (self.rows + self.tile_px > top)
        return np.flatnonzero(shares)

    def _read(self, index: int) -> np.ndarray:
        """The probabilities of a tile, float32 [K, tile_px, tile_px]."""
        import torch

        answer = self.answers[index].as_py()
        levels = torch.from_numpy(decode_levels(answer, self.outputs.packed_channels, self.answer_px).copy())
        logits = self.outputs.unpack(levels_to_logits(levels[None]))
        return self.outputs.probabilities(resize_logits(logits, self.tile_px))[0].numpy()


def place_tiles(starts: np.ndarray, scale: float, tile_px: int) -> np.ndarray:
    """Where tiles begin along one axis in pixels of their resolution, int64 [N], for `starts` in pixels of level 0.

    A start is a place on a grid, rounded down to a pixel of level 0, and `scale` level-0 pixels are a pixel. Tiles of a
    grid without overlap share their edges: rounded again, some would leave a pixel between them that none covers.
    """
    first = starts.min()
    beside = np.rint((starts - first) / (scale * tile_px)) * tile_px
    on_grid = abs(starts - first - beside * scale) < 1
    places: np.ndarray = np.where(on_grid, np.rint(first / scale) + beside, np.rint(starts / scale)).astype(np.int64)
    return places


def _depth(side: int) -> np.ndarray:
    """int64 [side, side]: the distance of each pixel from the edge of a tile, at least 1."""
    along = np.minimum(np.arange(side), np.arange(side)[::-1]) + 1
    return np.minimum(along[:, None], along[None])
