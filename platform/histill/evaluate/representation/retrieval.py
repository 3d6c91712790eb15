"""Retrieval: whether the tiles most like a tile, among those of other cases, are of its class."""

from dataclasses import dataclass

import numpy as np

from histill.evaluate.representation.embeddings import Embeddings
from histill.evaluate.representation.neighbors import compare_tiles

TOP = (1, 5)


@dataclass(frozen=True)
class Retrieval:
    """For each of N queries; NaN where no other case has a tile of its class."""

    hits: dict[int, np.ndarray]  # by k: float64 [N], 1 when one of the k most similar tiles is of its class
    average_precision: np.ndarray  # float64 [N] in 0..1, over the ranking of all tiles of other cases


def retrieve(embeddings: Embeddings) -> Retrieval:
    """Rank, for each tile, the tiles of other cases by cosine similarity.

    The average precision is sum_n (R_n - R_{n-1}) P_n over the thresholds n of similarity, so equally similar tiles
    count together (scikit-learn's `average_precision_score`).
    """
    tiles = len(embeddings)
    hits = {k: np.full(tiles, np.nan) for k in TOP}
    precision = np.full(tiles, np.nan)
    for part, similarity in compare_tiles(embeddings, embeddings):
        order = np.argsort(-similarity, axis=1, kind="stable")
        ranked = np.take_along_axis(similarity, order, 1)
        there = ~np.isneginf(ranked)
        alike = there & (embeddings.labels[order] == embeddings.labels[part, None])
        known = alike.any(1)
        for k in TOP:
            hits[k][part] = np.where(known, alike[:, :k].any(1), np.nan)
        precision[part] = np.where(known, _average_precision(ranked, alike), np.nan)
    return Retrieval(hits, precision)


def _average_precision(ranked: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """float64 [Q] from similarities in descending order, [Q, R], and which of them are of the query's class."""
    rank = np.arange(1, ranked.shape[1] + 1)
    last = np.ones_like(alike)  # of those that are equally similar
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    end = np.minimum.accumulate(np.where(last, rank, ranked.shape[1])[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(alike.cumsum(1), end - 1, 1) / end
    summed: np.ndarray = (precision * alike).sum(1) / np.maximum(alike.sum(1), 1)
    return summed
