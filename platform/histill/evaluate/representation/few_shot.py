"""Few-shot classification by the nearest class mean, from the labels of a few cases.

The classifier is SimpleShot (Wang et al., arXiv 1911.04623, section 2): center and L2-normalize the embeddings, then
choose the nearest class mean. A shot is a case with all its tiles of the class, because tiles of one case are not
independent.
"""

import numpy as np

from histill.evaluate.representation.embeddings import Embeddings, normalize


def draw_support(train: Embeddings, classes: int, shots: int, seed: int) -> np.ndarray | None:
    """Draw `shots` cases per class; the indices of their tiles of that class, int64, ascending.

    None if a class has fewer cases.
    """
    random = np.random.default_rng([seed, shots])
    chosen = []
    for label in range(classes):
        mine = np.flatnonzero(train.labels == label)
        cases = np.unique(train.cases[mine])
        if len(cases) < shots:
            return None
        chosen.append(mine[np.isin(train.cases[mine], random.choice(cases, shots, replace=False))])
    return np.sort(np.concatenate(chosen))


def decide_by_class_means(support: Embeddings, values: np.ndarray) -> np.ndarray:
    """Classify embeddings, float32 [N, D], by the nearest class mean of `support`; int64 [N]."""
    center = support.values.mean(0)
    known, asked = normalize(support.values - center), normalize(values - center)
    labels = np.unique(support.labels)
    means = np.stack([known[support.labels == label].mean(0) for label in labels])
    distance = (means**2).sum(1) - 2 * asked @ means.T  # squared Euclidean distance, up to a constant
    nearest: np.ndarray = labels[distance.argmin(1)]
    return nearest
