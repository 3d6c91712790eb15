"""How a teacher's response to a tile is stored: 8-bit logits, one row a tile, in shards like the tiles' own."""

import numpy as np
import pyarrow as pa

from histill.stream.decode import CorruptTile

LIMIT = 10.0
"""Logits are clipped to +-LIMIT; beyond it a probability moves by less than 5e-5."""
STEP = LIMIT / 127
"""Quantisation step; a stored logit within the limits is wrong by at most STEP / 2 = 0.039."""

RESPONSE = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("response", pa.binary(), nullable=False),  # zstd over uint8 [K - 1, H, W]; empty: no response
    ]
)
_CODEC = "zstd"


def encode(logits: np.ndarray) -> bytes:
    """Logits relative to class 0, float32 [K - 1, H, W], as bytes."""
    levels = np.clip(np.rint(logits / STEP), -127, 127).astype(np.int16) + 128
    return bytes(pa.compress(levels.astype(np.uint8).tobytes(), _CODEC, asbytes=True))


def decode(data: bytes, channels: int, size_px: int) -> np.ndarray:
    """The inverse of `encode`: float32 [channels, size_px, size_px]. Raises CorruptTile when the bytes are damaged."""
    size = channels * size_px * size_px
    try:
        raw = pa.decompress(data, size, _CODEC, asbytes=True)
    except (ValueError, OSError) as error:
        raise CorruptTile(f"its response: {error}") from None
    levels = np.frombuffer(raw, np.uint8)
    return (levels.reshape(channels, size_px, size_px).astype(np.float32) - 128) * np.float32(STEP)
