"""Evaluate embeddings without a probe: nearest neighbors, few-shot, retrieval, and the robustness index."""

from dataclasses import dataclass

import numpy as np

from histill.evaluate.representation.embeddings import Embeddings, mean_by_class
from histill.evaluate.representation.few_shot import decide_by_class_means, draw_support
from histill.evaluate.representation.neighbors import find_neighbors, vote
from histill.evaluate.representation.retrieval import retrieve
from histill.evaluate.representation.robustness_index import NeighborCounts, count_neighbors
from histill.metrics.weighted import Figures

KNN, FEW_SHOT, RETRIEVAL = "knn_balanced_accuracy", "few_shot_{}_balanced_accuracy", "retrieval_top_{}"
PRECISION, ROBUSTNESS_INDEX = "retrieval_map", "robustness_index"


@dataclass(frozen=True)
class Judgement:
    """Per-tile results for N held-out tiles, from which each figure is computed under tile weights.

    Weights apply to tiles as queries: resampling cases does not change a tile's neighbors.
    """

    labels: np.ndarray  # int64 [N]
    right: dict[str, np.ndarray]  # by figure: float64 [N] in 0..1, or [S, N] for S few-shot draws
    neighbors: NeighborCounts | None  # None: centers are unknown

    def figures(self, weights: np.ndarray | None = None) -> Figures:
        """Each figure, [D], under tile weights, float64 [D, N]; without weights over all tiles, [1].

        All but the robustness index are means over the classes; NaN where undefined. Over several draws it is their
        mean, with their standard deviation as `..._sd`.
        """
        if weights is None:
            weights = np.ones((1, len(self.labels)))
        found: Figures = {}
        for name, values in self.right.items():
            drawn = np.stack([mean_by_class(each, self.labels, weights) for each in np.atleast_2d(values)])
            found[name] = drawn.mean(0)
            if len(drawn) > 1:
                found[f"{name}_sd"] = drawn.std(0, ddof=1)
        if self.neighbors is not None:
            found[ROBUSTNESS_INDEX] = self.neighbors.index(weights)
        return found


def judge_embeddings(
    train: Embeddings,
    held_out: Embeddings,
    classes: int,
    *,
    neighbors: int,
    shots: tuple[int, ...],
    draws: int,
    centers: np.ndarray | None = None,
) -> Judgement:
    """Evaluate the embeddings of `held_out`, given the labels of `train`.

    Args:
        neighbors: number of nearest training tiles that vote for a tile's class.
        shots: numbers of cases per class for few-shot classification, each drawn `draws` times; NaN if a class has
            fewer cases.
        centers: the center or scanner of each held-out tile, [N]; None: unknown.
    """
    nearest = vote(find_neighbors(held_out, train, neighbors), train.labels, classes)
    right = {KNN: nearest.argmax(1) == held_out.labels}
    for count in shots:
        right[FEW_SHOT.format(count)] = np.stack([_few(train, held_out, classes, count, seed) for seed in range(draws)])
    retrieved = retrieve(held_out)
    right |= {RETRIEVAL.format(k): hits for k, hits in retrieved.hits.items()}
    right[PRECISION] = retrieved.average_precision
    counts = None if centers is None else count_neighbors(held_out, centers)
    return Judgement(held_out.labels, {name: each.astype(np.float64) for name, each in right.items()}, counts)


def _few(train: Embeddings, held_out: Embeddings, classes: int, shots: int, seed: int) -> np.ndarray:
    """Whether few-shot classification is right, float64 [N] of 0 and 1; NaN if there are too few cases."""
    support = draw_support(train, classes, shots, seed)
    if support is None:
        return np.full(len(held_out), np.nan)
    decided = decide_by_class_means(train.take(support), held_out.values)
    return (decided == held_out.labels).astype(np.float64)
