"""Judge the embeddings of a held-out split, beside a linear probe: neighbors, few cases, retrieval, centers."""

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
    """How well each of N held-out tiles is told by its neighbors and by few cases.

    From it every figure is computed under weights of tiles, as of redrawn cases. A tile's neighbors stay what they are:
    weights change how often it asks, not what it is answered from.
    """

    labels: np.ndarray  # int64 [N]
    right: dict[str, np.ndarray]  # by figure: float64 [N] in 0..1, or [S, N] for each of S draws of cases
    neighbors: NeighborCounts | None  # None: the tiles' centers are not known

    def figures(self, weights: np.ndarray | None = None) -> Figures:
        """Each figure under weights, float64 [D, N], as [D]; None: that of all tiles, as [1].

        All are means over the classes, but for the robustness index, and NaN where they cannot be told. Of several
        draws it is their mean, beside their standard deviation (`..._sd`).
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
    """What embeddings alone tell of the labels of `held_out`, given those of `train`.

    Args:
        neighbors: tiles of `train` whose majority says the class of a held-out one.
        shots: cases for each class from which class means are made, `draws` times each; NaN where a class has fewer.
        centers: the center or scanner of each held-out tile, [N]; None: not known.
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
    """float64 [N]: 1 where the nearest mean of a class of so many cases is right; NaN where there are not as many."""
    support = draw_support(train, classes, shots, seed)
    if support is None:
        return np.full(len(held_out), np.nan)
    decided = decide_by_class_means(train.take(support), held_out.values)
    return (decided == held_out.labels).astype(np.float64)
