"""Nearest neighbors by cosine, among the tiles of other cases."""

from collections.abc import Iterator

import numpy as np

from histill.evaluate.representation.embeddings import Embeddings, normalize

_PAIRS_AT_ONCE = 20_000_000


def compare_tiles(queries: Embeddings, references: Embeddings) -> Iterator[tuple[slice, np.ndarray]]:
    """Parts of the queries, with their cosine similarity to each reference, float32 [part, R] in -1..1.

    It is -inf for references of the query's own case.
    """
    _, case = np.unique(np.concatenate([queries.cases, references.cases]), return_inverse=True)
    asked, known = case[: len(queries)], case[len(queries) :]
    from_side, to_side = normalize(queries.values), normalize(references.values).T
    step = max(1, _PAIRS_AT_ONCE // max(1, len(references)))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        similarity = from_side[part] @ to_side
        similarity[np.equal.outer(asked[part], known)] = -np.inf
        yield part, similarity


def find_neighbors(queries: Embeddings, references: Embeddings, count: int) -> np.ndarray:
    """The indices of each query's `count` nearest references of other cases, the nearest first, int64 [Q, count].

    -1 where there are fewer.
    """
    count_there = min(count, len(references))
    found = np.full((len(queries), count), -1, np.int64)
    for part, similarity in compare_tiles(queries, references):
        nearest = np.argpartition(-similarity, count_there - 1, axis=1)[:, :count_there]
        near = np.take_along_axis(similarity, nearest, 1)
        order = np.argsort(-near, axis=1, kind="stable")
        index = np.take_along_axis(nearest, order, 1)
        index[np.isneginf(np.take_along_axis(near, order, 1))] = -1
        found[part, :count_there] = index
    return found


def vote(neighbors: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The share of each class among the neighbors, float64 [Q, K]; 0 for all where there is no neighbor.

    Args:
        neighbors: int64 [Q, k] indices of `labels`, -1 for none.
        labels: int64 [R], class indices.
    """
    there = neighbors >= 0
    said = np.where(there, labels[neighbors], classes)
    counts = np.stack([(said == k).sum(1) for k in range(classes)], axis=1)
    return counts / np.maximum(there.sum(1, keepdims=True), 1)
