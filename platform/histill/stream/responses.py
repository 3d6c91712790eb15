"""The storage format of a teacher's responses: 8-bit logits, one row per tile, in shards that mirror the tiles'.

The logits are packed (`OutputSpec.pack`): relative to class 0 where the classes are mutually exclusive. A dense
response has the side of its tile, a response to the whole tile a side of 1.
Logits relative to class 0 are clipped to +-10 and rounded to steps of 10 / 127: within these limits a stored logit is
off by at most 0.039, and thus a probability of two classes by at most 0.01. Raw logits serve every temperature. Each
view of a tile has its own column, so that an epoch reads only the one that it learns from.
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
    """The names of the response columns of a cache with `views` views."""
    return ("response",) if views == 1 else tuple(f"response_{view}" for view in range(views))


def map_columns(views: int) -> tuple[str, ...]:
    """The names of the feature map columns of a cache with `views` views."""
    return tuple(name.replace("response", "map") for name in response_columns(views))


def response_schema(views: int, maps: bool = False) -> pa.Schema:
    """One row per tile; a response is zstd over uint8 [K - 1, H, W], empty if the tile cannot be decoded.

    With `maps`, each response comes with a feature map, see `encode_map`.
    """
    names = response_columns(views) + (map_columns(views) if maps else ())
    columns = [pa.field(name, pa.binary(), nullable=False) for name in names]
    return pa.schema([pa.field("tile_id", pa.string(), nullable=False), *columns])


def encode_logits(logits: np.ndarray) -> bytes:
    """Encode logits relative to class 0, float32 [K - 1, H, W]."""
    levels = np.clip(np.rint(logits / STEP), -127, 127).astype(np.int16) + ZERO
    return bytes(pa.compress(levels.astype(np.uint8).tobytes(), _CODEC, asbytes=True))


def decode_levels(data: bytes | memoryview, channels: int, size_px: int) -> np.ndarray:
    """Decode the levels, uint8 [channels, size_px, size_px], that `encode_logits` stored.

    They stay 8 bits wide up to the loss, see `levels_to_logits`. Raises CorruptTile when they are damaged.
    """
    size = channels * size_px * size_px
    try:
        raw = pa.decompress(data, size, _CODEC, asbytes=True)
    except (ValueError, OSError) as error:
        raise CorruptTile(f"its response: {error}") from None
    return np.frombuffer(raw, np.uint8).reshape(channels, size_px, size_px)


def encode_map(feature_map: np.ndarray) -> bytes:
    """Encode a feature map, float32 [C, h, w]: its quantization step, then each value as a multiple of it in int8.

    The step is 1/127 of the largest magnitude in the map, so a value is off by at most half a step.
    """
    step = np.float32(max(float(np.abs(feature_map).max()) / 127, 1e-12))
    levels = np.rint(feature_map / step).astype(np.int8)
    return bytes(pa.compress(step.tobytes() + levels.tobytes(), _CODEC, asbytes=True))


def decode_map(data: bytes | memoryview, shape: tuple[int, int, int]) -> np.ndarray:
    """Decode the map, float32 of `shape`, that `encode_map` stored. Raises CorruptTile when it is damaged."""
    try:
        raw = pa.decompress(data, 4 + math.prod(shape), _CODEC, asbytes=True)
    except (ValueError, OSError) as error:
        raise CorruptTile(f"its feature map: {error}") from None
    return np.frombuffer(raw, np.int8, offset=4).reshape(shape) * np.frombuffer(raw, np.float32, count=1)


def encode_embedding(embedding: np.ndarray) -> bytes:
    """An embedding, float [D], as float16: a relative error of at most 2^-11 where it is within +-65504.

    Raises ValueError when it is not finite as float16.
    """
    with np.errstate(over="ignore"):
        stored = embedding.astype("<f2")
    if not np.isfinite(stored).all():
        raise ValueError("an embedding is not finite as float16")
    return stored.tobytes()


def decode_embedding(data: bytes | memoryview, width: int) -> np.ndarray:
    """The embedding, float16 [width], that `encode_embedding` stored. Raises CorruptTile when it is damaged."""
    if len(data) != 2 * width:
        raise CorruptTile(f"its embedding has {len(data)} bytes instead of {2 * width}")
    return np.frombuffer(data, "<f2")


def levels_to_logits(levels: "torch.Tensor") -> "torch.Tensor":
    """Convert levels, uint8 [B, C, H, W], to packed logits, float32."""
    return levels.float().sub_(ZERO).mul_(STEP)
