"""Hold the objects of a batch of tiles against those of its reference."""

import numpy as np
from torch import Tensor

from histill.config.objects import Objects
from histill.metrics.objects import COUNTS, count_objects
from histill.objects.instances import Instances, label_mask
from histill.objects.watershed import separate_objects
from histill.outputs import OutputSpec


def count_tiles(found: list[Instances], true: list[Instances], reference: Tensor, classes: int) -> np.ndarray:
    """float64 [B, K - 1, 6]: `COUNTS` of each tile, for K = `classes` with the background.

    Args:
        reference: int64 [B, H, W], below 0 for ignored pixels.
    """
    ignored = (reference < 0).numpy()
    counts = [count_objects(one, other, classes, each) for one, other, each in zip(found, true, ignored, strict=True)]
    return np.stack(counts) if counts else np.zeros((0, classes - 1, len(COUNTS)))


def find_objects(logits: Tensor, outputs: OutputSpec, mpp: float, objects: Objects) -> list[Instances]:
    """The objects of each tile, for a segmenter's logits [B, K, H, W] at `mpp` microns per pixel."""
    probabilities = outputs.probabilities(logits.float()).cpu().numpy()
    separate = [separate_objects(each, boundary=outputs.boundary, mpp=mpp) for each in probabilities]
    return [_drop_small(each, mpp, objects) for each in separate]


def find_mask_objects(masks: Tensor, mpp: float, objects: Objects) -> list[Instances]:
    """The connected regions of each mask, int64 [B, H, W], at `mpp` microns per pixel."""
    return [_drop_small(label_mask(each), mpp, objects) for each in masks.numpy()]


def _drop_small(found: Instances, mpp: float, objects: Objects) -> Instances:
    return found.keep(found.areas * mpp**2 >= objects.min_um2)
