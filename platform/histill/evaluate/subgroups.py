"""Figures of subgroups of a split: each slide, and groups of slides with similar stain."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from histill.evaluate.predictions import Predictions

STAIN_GROUPS = ("most eosin", "between", "most hematoxylin")


@dataclass(frozen=True)
class Subgroup:
    """The size and main figure of a part of a split."""

    tiles: int
    figure: float


def score_slides(answers: Predictions, slides: np.ndarray) -> dict[str, Subgroup]:
    """The main figure of each slide, worst first; `slides` names the slide of each predicted tile."""
    names, slide = np.unique(slides, return_inverse=True)
    parts = _parts(answers, dict(enumerate(names.tolist())), slide)
    return dict(sorted(parts.items(), key=lambda item: (math.isnan(item[1].figure), item[1].figure)))


def score_stain_groups(answers: Predictions, slides: np.ndarray) -> dict[str, Subgroup]:
    """The main figure of three groups of slides, by the share of hematoxylin in their mean optical density.

    Stains differ between labs and scanners: a model that works for only one group will fail elsewhere. Empty for fewer
    than three slides.
    """
    names, slide = np.unique(slides, return_inverse=True)
    if len(names) < len(STAIN_GROUPS):
        return {}
    sums = np.stack([np.bincount(slide, answers.stains[:, stain]) for stain in (0, 1)])
    share = sums[0] / np.maximum(sums.sum(0), 1e-12)
    group = np.empty(len(names), np.int64)
    group[np.argsort(share, kind="stable")] = np.arange(len(names)) * len(STAIN_GROUPS) // len(names)
    return _parts(answers, dict(enumerate(STAIN_GROUPS)), group[slide])


def _parts(answers: Predictions, names: Mapping[int, str], part: np.ndarray) -> dict[str, Subgroup]:
    main, found = answers.spec.main_metric, {}
    for number, name in names.items():
        mine = (part == number).astype(np.float64)
        found[name] = Subgroup(int(mine.sum()), float(answers.figures(mine[None])[main][0]))
    return found
