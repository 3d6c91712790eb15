"""A map of instances: which pixels belong to which object, of which class, and how surely."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Instances:
    """N objects of an image; none of them share a pixel."""

    labels: np.ndarray  # int32 [H, W]: 0 outside of all, n + 1 for object n
    classes: np.ndarray  # int64 [N]: 1..K-1, where 0 is the background
    probabilities: np.ndarray  # float64 [N]: of its class, mean over its pixels

    @property
    def areas(self) -> np.ndarray:
        """int64 [N]: pixels of each."""
        return np.bincount(self.labels.ravel(), minlength=len(self.classes) + 1)[1:]

    def keep(self, chosen: np.ndarray) -> "Instances":
        """Those that `chosen`, bool [N], has, numbered anew in the same order."""
        numbers = np.concatenate([[0], np.where(chosen, np.cumsum(chosen), 0)]).astype(np.int32)
        return Instances(numbers[self.labels], self.classes[chosen], self.probabilities[chosen])


def label_mask(mask: np.ndarray) -> Instances:
    """The connected regions of each class of a mask, int [H, W], 0 and below for none; neighbors share a pixel's side.

    A mask of classes cannot tell touching objects of one class apart: they are one.
    """
    from skimage.measure import label

    labels = label(np.maximum(mask, 0), connectivity=1).astype(np.int32)
    classes = np.zeros(int(labels.max()), np.int64)
    marked = labels > 0
    classes[labels[marked] - 1] = mask[marked]
    return Instances(labels, classes, np.ones(len(classes)))


def classify(labels: np.ndarray, probabilities: np.ndarray) -> Instances:
    """Give each region of `labels`, int [H, W] numbered 1..N without gaps, its most probable class.

    Args:
        probabilities: float [K - 1, H, W] of the classes without the background; an object's is the mean over its
            pixels.
    """
    flat, count = labels.ravel(), int(labels.max())
    areas = np.maximum(np.bincount(flat, minlength=count + 1)[1:], 1)
    means = np.stack([np.bincount(flat, each.ravel(), count + 1)[1:] / areas for each in probabilities])
    return Instances(labels.astype(np.int32, copy=False), 1 + means.argmax(0), means.max(0))
