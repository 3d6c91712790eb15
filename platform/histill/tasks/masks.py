"""Masks of a batch: their classes, how much of them is labeled, and which tile it is that holds a wrong one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from histill.errors import InputError
from histill.storage.uris import join
from histill.stream.tile_batch import Labeled, TileBatch
from histill.tiles.manifest import Manifest
from histill.tiles.masks import IGNORED


def read_masks(batch: TileBatch, classes: tuple[str, ...], name_of: Callable[[int], str]) -> Tensor:
    """The masks, int64 [B, H, W] of 0..K-1 for the K `classes`, and -1 for what is to be ignored.

    Raises InputError when one holds another value; `name_of` tells the tile by its row of the manifest.
    """
    if batch.mask is None:
        raise RuntimeError("the batch brings no masks")
    mask = batch.mask.long()
    mask = torch.where(mask == IGNORED, -1, mask)
    highest, slot = mask.flatten(1).amax(1).max(0)
    if int(highest) >= len(classes):
        raise InputError(
            f"the mask of {name_of(int(batch.index[slot]))} holds the value {int(highest)} and 0 to {len(classes) - 1} "
            f"was expected ({', '.join(classes)}); correct the mask and ingest again, or train with a class for every "
            "value."
        )
    return mask


def measure_labeled(batch: TileBatch, total: Callable[[Tensor], Tensor] = lambda counts: counts) -> Labeled:
    """How much of the global batch has a class; `total` sums over the workers, each of which calls it once.

    A loss over masks, a sum over labeled pixels (or tiles) that is divided by the number of all, is divided by this,
    and is then their mean, whatever the number of workers. Without ignored pixels both shares are exactly 1.
    """
    if batch.mask is None:
        raise RuntimeError("the batch brings no masks")
    side = batch.student.shape[-1]
    known = (sample_nearest(batch.mask, side) != IGNORED).flatten(1) & batch.valid[:, None]
    counts = torch.stack([batch.valid.sum(), known.sum(), known.any(1).sum()]).double()
    valid, pixels, tiles = total(counts)
    return Labeled(pixels / (valid * side * side).clamp_min(1), tiles / valid.clamp_min(1))


def sample_nearest(mask: Tensor, side: int) -> Tensor:
    """`mask`, an integer [B, H, W], at the nearest pixels of [B, side, side]."""
    if mask.shape[-1] == side:
        return mask
    return F.interpolate(mask[:, None].float(), size=side, mode="nearest-exact")[:, 0].to(mask.dtype)


def tile_name(manifest: Manifest, row: int) -> str:
    """The tile in a row of the manifest, and where it is stored."""
    place = manifest.table.slice(row, 1).to_pylist()[0]
    return f"tile {place['tile_id']} in shard {join(manifest.uri, place['shard'])}"
