"""The masks of a batch: read and validate them, measure their labeled share, and resample them."""

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
    """The masks, int64 [B, H, W]: 0..K-1 for the K `classes`, -1 for ignored pixels.

    Raises InputError for any other value; `name_of` names a tile by its manifest row.
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
            "value.",
            code="mask-values",
        )
    return mask


def measure_labeled(batch: TileBatch, total: Callable[[Tensor], Tensor] = lambda counts: counts) -> Labeled:
    """The labeled share of the global batch; `total` sums over the workers, each of which calls it once.

    Mask losses sum over labeled pixels (or tiles) but divide by the number of all; dividing by this share makes them
    the mean over labeled ones, whatever the number of workers. Without ignored pixels both shares are exactly 1.
    """
    if batch.mask is None:
        raise RuntimeError("the batch brings no masks")
    side = batch.student.shape[-1]
    known = (sample_nearest(batch.mask, side) != IGNORED).flatten(1) & batch.valid[:, None]
    counts = torch.stack([batch.valid.sum(), known.sum(), known.any(1).sum()]).double()
    valid, pixels, tiles = total(counts)
    return Labeled(pixels / (valid * side * side).clamp_min(1), tiles / valid.clamp_min(1))


def sample_nearest(mask: Tensor, side: int) -> Tensor:
    """Resample an integer `mask` [B, H, W] to [B, side, side] by nearest neighbor."""
    if mask.shape[-1] == side:
        return mask
    return F.interpolate(mask[:, None].float(), size=side, mode="nearest-exact")[:, 0].to(mask.dtype)


def tile_name(manifest: Manifest, row: int) -> str:
    """Describe the tile in a manifest row: its id and shard."""
    place = manifest.tile(row)
    return f"tile {place['tile_id']} in shard {join(manifest.uri, place['shard'])}"
