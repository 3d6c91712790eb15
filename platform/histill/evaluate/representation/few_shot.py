"""Few-shot classification: labels of few cases, and the nearest mean of a class.

The classifier is SimpleShot's (Wang et al., arXiv 1911.04623, section 2: embeddings are centered and L2-normalized, and
the nearest class mean decides), which is customary for pathology encoders. Cases are counted, not tiles: those of one
case are alike.
"""

import numpy as np

from histill.evaluate.representation.embeddings import Embeddings, normalize


def draw_support(train: Embeddings, classes: int, shots: int, seed: int) -> np.ndarray | None:
    """The tiles, int64 ascending, of `shots` cases for each class: those of that class alone.

    None when a class has fewer cases.
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
    """The class whose mean in `support` is nearest to each of `values`, float32 [N, D]; int64 [N]."""
    center = support.values.mean(0)
    known, asked = normalize(support.values - center), normalize(values - center)
    labels = np.unique(support.labels)
    means = np.stack([known[support.labels == label].mean(0) for label in labels])
    distance = (means**2).sum(1) - 2 * asked @ means.T  # squared, less what is the same for every class
    nearest: np.ndarray = labels[distance.argmin(1)]
    return nearest
