"""How a teacher's responses to a tile are stored: 8-bit logits, one row a tile, in shards like the tiles' own.

The logits are packed (`OutputSpec.pack`): relative to class 0 where the classes exclude each other.
A response to every pixel has the tile's size, one to the whole tile is a map of one pixel.
Logits relative to class 0 are clipped to +-10 and rounded to steps of 10 / 127: within these limits a stored logit is
off by at most 0.039, and so a probability, of two classes, by at most 0.01. Raw logits serve every temperature. Each
view of a tile has a column of its own, so that an epoch reads only the one it learns from.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from histill.stream.decode import CorruptTile

if TYPE_CHECKING:
    import torch

LIMIT = 10.0
"""Logits are clipped to +-LIMIT; beyond it a probability moves by less than 5e-5."""
STEP = LIMIT / 127
"""Quantization step; a stored logit within the limits is wrong by at most STEP / 2 = 0.039."""
ZERO = 128
"""The level of a logit of 0."""

_CODEC = "zstd"


def response_columns(views: int) -> tuple[str, ...]:
    """The column of each of `views` views."""
    return ("response",) if views == 1 else tuple(f"response_{view}" for view in range(views))


def map_columns(views: int) -> tuple[str, ...]:
    """The column of each of `views` views with a feature map of the teacher."""
    return tuple(name.replace("response", "map") for name in response_columns(views))


def response_schema(views: int, maps: bool = False) -> pa.Schema:
    """A row for each tile; a response is zstd over uint8 [K - 1, H, W], empty where the tile cannot be decoded.

    `maps`: beside each response lies a feature map, see `encode_map`.
    """
    names = response_columns(views) + (map_columns(views) if maps else ())
    columns = [pa.field(name, pa.binary(), nullable=False) for name in names]
    return pa.schema([pa.field("tile_id", pa.string(), nullable=False), *columns])


def encode_logits(logits: np.ndarray) -> bytes:
    """Logits relative to class 0, float32 [K - 1, H, W], as bytes."""
    levels = np.clip(np.rint(logits / STEP), -127, 127).astype(np.int16) + ZERO
    return bytes(pa.compress(levels.astype(np.uint8).tobytes(), _CODEC, asbytes=True))


def decode_levels(data: bytes | memoryview, channels: int, size_px: int) -> np.ndarray:
    """The levels, uint8 [channels, size_px, size_px], that `encode_logits` stored.

    Raises CorruptTile when they are damaged. They stay 8 bits wide as far as the loss: see
    `levels_to_logits`.
    """
    size = channels * size_px * size_px
    try:
        raw = pa.decompress(data, size, _CODEC, asbytes=True)
    except (ValueError, OSError) as error:
        raise CorruptTile(f"its response: {error}") from None
    return np.frombuffer(raw, np.uint8).reshape(channels, size_px, size_px)


def encode_map(feature_map: np.ndarray) -> bytes:
    """A feature map, float32 [C, h, w], as bytes: its step, then each value in steps, 8 bits wide.

    The step is a 127th of the largest magnitude in the map, so a value is off by at most half of that.
    """
    step = np.float32(max(float(np.abs(feature_map).max()) / 127, 1e-12))
    levels = np.rint(feature_map / step).astype(np.int8)
    return bytes(pa.compress(step.tobytes() + levels.tobytes(), _CODEC, asbytes=True))


def decode_map(data: bytes | memoryview, shape: tuple[int, int, int]) -> np.ndarray:
    """The map, float32 of `shape`, that `encode_map` stored. Raises CorruptTile when it is damaged."""
    try:
        raw = pa.decompress(data, 4 + math.prod(shape), _CODEC, asbytes=True)
    except (ValueError, OSError) as error:
        raise CorruptTile(f"its feature map: {error}") from None
    return np.frombuffer(raw, np.int8, offset=4).reshape(shape) * np.frombuffer(raw, np.float32, count=1)


def levels_to_logits(levels: "torch.Tensor") -> "torch.Tensor":
    """Levels, uint8 [B, C, H, W], as packed logits, float32."""
    return levels.float().sub_(ZERO).mul_(STEP)
