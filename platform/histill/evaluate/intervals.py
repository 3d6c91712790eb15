"""How sure a figure is: the bootstrap over cases, since tiles of one case are not independent (Efron 1979)."""

import numpy as np

from histill.evaluate.answers import Answers
from histill.metrics.weighted import Figures

Interval = tuple[float, float]
_LEVEL = 95.0
_WEIGHTS_AT_ONCE = 20_000_000


def drawn_figures(answers: Answers, cases: np.ndarray, draws: int, seed: int) -> Figures:
    """Each figure of `draws` sets of as many cases, drawn with replacement, [draws].

    `cases` names the case of each answered tile. The same seed draws the same cases for every model, so that the
    difference of two models' figures, draw by draw, is paired.
    """
    names, case = np.unique(cases, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    at_once = max(1, _WEIGHTS_AT_ONCE // max(1, len(cases)))
    parts = [
        answers.figures(counts[start : start + at_once, case].astype(np.float64)) for start in range(0, draws, at_once)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def paired_difference(
    one: Answers, other: Answers, cases: np.ndarray, figure: str, draws: int
) -> tuple[float, Interval]:
    """How far `figure` of `one` lies above that of `other`, and the middle 95 % of that over the same redrawn cases.

    Both must have answered the same tiles, of which `cases` names the cases. A single case has no interval: NaN.
    """
    if not np.array_equal(one.rows, other.rows):
        raise ValueError("two models are compared on different tiles")
    drawn = [drawn_figures(each, cases, draws, seed=0)[figure] for each in (one, other)]
    whole = [float(each.figures()[figure][0]) for each in (one, other)]
    spread = interval(drawn[0] - drawn[1]) if len(np.unique(cases)) > 1 else (float("nan"), float("nan"))
    return whole[0] - whole[1], spread


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of redrawn figures; NaN when none is known."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return float(low), float(high)
