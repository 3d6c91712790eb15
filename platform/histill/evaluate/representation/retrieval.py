"""Evaluate retrieval: whether the tiles of other cases that are most similar to a tile have its class."""

from dataclasses import dataclass

import numpy as np

from histill.evaluate.representation.embeddings import Embeddings
from histill.evaluate.representation.neighbors import compare_tiles

TOP = (1, 5)


@dataclass(frozen=True)
class Retrieval:
    """Results per query, [N]; NaN if no other case has a tile of its class."""

    hits: dict[int, np.ndarray]  # by k: float64 [N], 1 if any of the k most similar tiles has its class
    average_precision: np.ndarray  # float64 [N] in 0..1, over the ranking of all tiles of other cases


def retrieve(embeddings: Embeddings) -> Retrieval:
    """Rank the tiles of other cases by their cosine similarity to each tile.

    The average precision is sum_n (R_n - R_{n-1}) P_n over the similarity thresholds n, so that equally similar tiles
    count together, as in scikit-learn's `average_precision_score`.
    """
    tiles = len(embeddings)
    hits = {k: np.full(tiles, np.nan) for k in TOP}
    precision = np.full(tiles, np.nan)
    for part, similarity in compare_tiles(embeddings, embeddings, "retrieval"):
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
    """float64 [Q], from descending similarities [Q, R] and whether each tile has the query's class, bool [Q, R]."""
    rank = np.arange(1, ranked.shape[1] + 1)
    last = np.ones_like(alike)  # last of a run of equal similarities
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    end = np.minimum.accumulate(np.where(last, rank, ranked.shape[1])[:, ::-1], axis=1)[:, ::-1]
    precision = np.take_along_axis(alike.cumsum(1), end - 1, 1) / end
    summed: np.ndarray = (precision * alike).sum(1) / np.maximum(alike.sum(1), 1)
    return summed
