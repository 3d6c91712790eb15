"""Embeddings with the label and case of each tile."""

from dataclasses import dataclass

import numpy as np

from histill.metrics.weighted import nan_mean


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of N tiles."""

    values: np.ndarray  # float32 [N, D]
    labels: np.ndarray  # int64 [N], class indices
    cases: np.ndarray  # [N], names

    def __len__(self) -> int:
        return len(self.values)

    def take(self, chosen: np.ndarray) -> "Embeddings":
        """Select tiles by index, int64, or by mask, bool [N]."""
        return Embeddings(self.values[chosen], self.labels[chosen], self.cases[chosen])


def normalize(values: np.ndarray) -> np.ndarray:
    """L2-normalize rows, float32 [N, D]; zero rows stay zero."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, lengths, out=np.zeros_like(values, np.float32), where=lengths > 0)


def mean_by_class(values: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average `values` within each class, under tile weights, then over the classes, [D].

    For `values` of 1 (right) and 0 (wrong) this is the balanced accuracy.

    Args:
        values: float [N]; NaN excludes a tile.
        labels: int64 [N]; classes without weight are excluded.
        weights: float64 [D, N].
    """
    known = ~np.isnan(values)
    member = np.equal.outer(labels[known], np.unique(labels)).astype(np.float64)
    total = weights[:, known] @ member
    summed = weights[:, known] @ (member * values[known, None])
    return nan_mean(np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0))
