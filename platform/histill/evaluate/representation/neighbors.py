"""Find nearest neighbors by cosine similarity among tiles of other cases."""

from collections.abc import Iterator

import numpy as np

from histill.cluster.progress import track
from histill.evaluate.representation.embeddings import Embeddings, normalize

_PAIRS_AT_ONCE = 20_000_000


def compare_tiles(queries: Embeddings, references: Embeddings, title: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of the queries with their cosine similarities to all references, float32 [part, R].

    The similarity to references of the query's own case is -inf. Shows progress under `title`.
    """
    _, case = np.unique(np.concatenate([queries.cases, references.cases]), return_inverse=True)
    asked, known = case[: len(queries)], case[len(queries) :]
    from_side, to_side = normalize(queries.values), normalize(references.values).T
    step = max(1, _PAIRS_AT_ONCE // max(1, len(references)))
    parts = [slice(start, min(start + step, len(queries))) for start in range(0, len(queries), step)]
    for part in track(parts, len(queries), title=title, unit="tiles", count=lambda part: part.stop - part.start):
        similarity = from_side[part] @ to_side
        similarity[np.equal.outer(asked[part], known)] = -np.inf
        yield part, similarity


def find_neighbors(queries: Embeddings, references: Embeddings, count: int) -> np.ndarray:
    """The indices of each query's `count` nearest references of other cases, nearest first, int64 [Q, count].

    -1 where there are fewer.
    """
    count_there = min(count, len(references))
    found = np.full((len(queries), count), -1, np.int64)
    for part, similarity in compare_tiles(queries, references, "neighbors"):
        nearest = np.argpartition(-similarity, count_there - 1, axis=1)[:, :count_there]
        near = np.take_along_axis(similarity, nearest, 1)
        order = np.argsort(-near, axis=1, kind="stable")
        index = np.take_along_axis(nearest, order, 1)
        index[np.isneginf(np.take_along_axis(near, order, 1))] = -1
        found[part, :count_there] = index
    return found


def vote(neighbors: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The share of each class among the neighbors, float64 [Q, K]; all 0 without neighbors.

    Args:
        neighbors: int64 [Q, k] indices into `labels`, -1 for none.
        labels: int64 [R], class indices.
    """
    there = neighbors >= 0
    said = np.where(there, labels[neighbors], classes)
    counts = np.stack([(said == k).sum(1) for k in range(classes)], axis=1)
    return counts / np.maximum(there.sum(1, keepdims=True), 1)
