"""The robustness index: do embeddings encode the tissue or the center it comes from? (PathoROB, arXiv 2507.17845)

Among a tile's k nearest neighbors from other cases, SO counts those with the same class and another center, and OS
those with another class and the same center. The index is sum(SO) / (sum(SO) + sum(OS)): 1 if only the class determines
similarity, 0 if only the center does. k maximizes the balanced accuracy of nearest-neighbor classification.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histill.evaluate.representation.embeddings import Embeddings, mean_by_class
from histill.evaluate.representation.neighbors import find_neighbors, vote

NEIGHBORS = (1, 3, 5, 11, 21, 51, 101)
"""Candidates for k."""


@dataclass(frozen=True)
class NeighborCounts:
    """Counts among the k nearest neighbors of each of N tiles."""

    same_class_other_center: np.ndarray  # SO, int64 [N]
    other_class_same_center: np.ndarray  # OS, int64 [N]
    k: int

    def index(self, weights: np.ndarray) -> np.ndarray:
        """The robustness index in 0..1, [D], under tile weights, float64 [D, N]; NaN if SO and OS are 0."""
        same, other = weights @ self.same_class_other_center, weights @ self.other_class_same_center
        return np.divide(same, same + other, out=np.full(len(weights), np.nan), where=same + other > 0)


def have_shared_classes(labels: np.ndarray, centers: np.ndarray) -> bool:
    """Whether two centers share two classes; otherwise class and center are confounded."""
    pairs = {(label, center) for label, center in zip(labels.tolist(), centers.tolist(), strict=True)}
    of_center = [{label for label, center in pairs if center == name} for name in {center for _, center in pairs}]
    return any(len(one & other) > 1 for place, one in enumerate(of_center) for other in of_center[:place])


def count_neighbors(
    embeddings: Embeddings, centers: np.ndarray, candidates: Sequence[int] = NEIGHBORS
) -> NeighborCounts:
    """Count neighbors by class and center; `centers` names the center of each tile, [N].

    k is the candidate with the highest balanced accuracy by majority vote, the first of equal ones.
    """
    labels, tiles = embeddings.labels, len(embeddings)
    neighbors = find_neighbors(embeddings, embeddings, max(candidates))
    classes, everyone = int(labels.max()) + 1, np.ones((1, tiles))

    def judge(k: int) -> float:
        right = vote(neighbors[:, :k], labels, classes).argmax(1) == labels
        return float(mean_by_class(right.astype(float), labels, everyone)[0])

    k = max(candidates, key=judge)
    near = neighbors[:, :k]
    there, center = near >= 0, np.unique(centers, return_inverse=True)[1]
    same_class, same_center = labels[near] == labels[:, None], center[near] == center[:, None]
    return NeighborCounts(
        same_class_other_center=(there & same_class & ~same_center).sum(1),
        other_class_same_center=(there & ~same_class & same_center).sum(1),
        k=k,
    )
