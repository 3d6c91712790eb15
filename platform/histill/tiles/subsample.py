"""Subsample the cases of a split, as if only few were labeled."""

import hashlib
import math
from collections import Counter, defaultdict

import numpy as np

from histill.tiles.manifest import Manifest


def subsample_cases(manifest: Manifest, split: str, fraction: float, seed: int) -> frozenset[str]:
    """About `fraction` (above 0, at most 1) of the cases of `split`, at least one for each label.

    Cases are grouped by their most frequent label and taken in the order of a hash of the seed and the case, so a
    smaller fraction is a subset of a larger one. For a label that is nowhere the most frequent, the first case with it
    is always taken.
    """
    manifest.select(split)  # refuses an empty split
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for (of, case, label), count in manifest.count("split", "case", "label"):
        if of == split:
            labels[case][label or ""] += count
    by_label: dict[str, list[str]] = defaultdict(list)
    first: dict[str, str] = {}
    for case in sorted(labels, key=lambda case: _order(case, seed)):
        by_label[labels[case].most_common(1)[0][0]].append(case)
        for label in labels[case]:
            first.setdefault(label, case)
    chosen = [case for cases in by_label.values() for case in cases[: math.ceil(fraction * len(cases))]]
    return frozenset(chosen + [case for label, case in first.items() if label not in by_label])


def balance_weights(counts: np.ndarray) -> tuple[float, ...]:
    """Weights that balance classes of `counts` (int64 [K]) tiles, 1 on average over these; 0 for an absent class."""
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return tuple(weights.tolist())


def _order(case: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{case}".encode(), digest_size=16).digest()
