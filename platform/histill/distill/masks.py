"""Masks of a batch, and which tile it is that holds a wrong one."""

from collections.abc import Callable

from torch import Tensor

from histill.errors import InputError
from histill.storage.uris import join
from histill.stream.batches import TileBatch
from histill.tiles.manifest import Manifest


def masks_among(batch: TileBatch, classes: tuple[str, ...], name_of: Callable[[int], str]) -> Tensor:
    """The masks, int64 [B, H, W] of 0..K-1 for the K `classes`.

    Raises InputError when one holds another value; `name_of` tells the tile by its row of the manifest.
    """
    if batch.mask is None:
        raise RuntimeError("the batch brings no masks")
    highest, slot = batch.mask.flatten(1).amax(1).max(0)
    if int(highest) >= len(classes):
        raise InputError(
            f"the mask of {name_of(int(batch.index[slot]))} holds the value {int(highest)} and 0 to {len(classes) - 1} "
            f"was expected ({', '.join(classes)}); correct the mask and ingest again, or train with a class for every "
            "value."
        )
    return batch.mask.long()


def tile_name(manifest: Manifest, row: int) -> str:
    """The tile in a row of the manifest, and where it is stored."""
    place = manifest.table.slice(row, 1).to_pylist()[0]
    return f"tile {place['tile_id']} in shard {join(manifest.uri, place['shard'])}"
