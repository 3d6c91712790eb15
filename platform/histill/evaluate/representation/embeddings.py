"""The embeddings of a split's tiles, with what is known of each tile."""

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
        """The tiles at `chosen`, int64 or bool [N]."""
        return Embeddings(self.values[chosen], self.labels[chosen], self.cases[chosen])


def normalize(values: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32 [N, D]; a row of zeros stays one."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, lengths, out=np.zeros_like(values, np.float32), where=lengths > 0)


def mean_by_class(values: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over the classes of each class's weighted mean of `values`, [D].

    Of `values` that are 1 for a right decision and 0 for a wrong one this is the balanced accuracy.

    Args:
        values: float [N], of each tile; NaN: the tile is left out.
        labels: int64 [N]; a class without weight has no part in the mean.
        weights: float64 [D, N].
    """
    known = ~np.isnan(values)
    member = np.equal.outer(labels[known], np.unique(labels)).astype(np.float64)
    total = weights[:, known] @ member
    summed = weights[:, known] @ (member * values[known, None])
    return nan_mean(np.divide(summed, total, out=np.full(total.shape, np.nan), where=total > 0))
