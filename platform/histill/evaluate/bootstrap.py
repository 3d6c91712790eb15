"""Confidence intervals of figures over cases, because tiles of one case are not independent.

A single model's figures are bootstrapped over cases (Efron 1979). Two models are compared on subsets of the cases,
which gives an interval with the nominal coverage from six cases on (Hartigan 1969).
"""

import math
from typing import Protocol

import numpy as np
from scipy import special

from histill.evaluate.predictions import Predictions
from histill.metrics.weighted import Figures

Interval = tuple[float, float]
LEAST_CASES = 6  # with 5, all differences are positive by chance with probability 1/2^5 = 3.1 % > 2.5 %
_LEVEL = 95.0
_WEIGHTS_AT_ONCE = 20_000_000
_DIGITS = 9  # decimals of a difference, so that rounding does not make equal models differ
_NONE: Interval = (float("nan"), float("nan"))


class Answers(Protocol):
    """Anything whose figures can be computed under tile weights."""

    def figures(self, weights: np.ndarray | None = None) -> Figures:
        """Each figure, [D], under tile weights, float64 [D, N]."""
        ...


def bootstrap_metrics(answers: Answers, cases: np.ndarray, samples: int, seed: int) -> Figures:
    """Each figure of `samples` bootstrap resamples of the cases, [samples].

    `cases` names the case of each predicted tile. The same seed draws the same cases for every model.
    """
    names, case = np.unique(cases, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return _figures_under(answers, counts, case)


def bootstrap_groups(
    answers: Answers, cases: np.ndarray, inside: np.ndarray, figure: str, samples: int, seed: int
) -> np.ndarray:
    """The figure of a group of tiles less that of all others, for `samples` resamples of the cases, [samples].

    `cases` names the case of each predicted tile, and `inside` is 1 for those of the group and 0 for others.
    """
    names, case = np.unique(cases, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    group, others = (_figures_under(answers, counts, case, part)[figure] for part in (inside, 1 - inside))
    return group - others


def paired_difference(
    one: Predictions, other: Predictions, cases: np.ndarray, figure: str, samples: int
) -> tuple[float, Interval]:
    """The difference `one` - `other` in `figure`, and its 95 % interval over cases.

    Both must be predictions for the same tiles; `cases` names the case of each. The interval comes from the differences
    on m subsets of the cases, each pooled over its tiles: all subsets, or `samples` random ones if there are more. For
    independent cases with differences symmetric about a common center, that center lies in each of the m + 1 gaps
    around the sorted values with probability 1/(m + 1) (Hartigan 1969, "Using subsample values as typical values");
    this inverts the sign-flip test of every center. For two equally good models the differences are symmetric about 0,
    whatever the size and quality of the cases. A subset without a value for the figure counts as no difference. Fewer
    than 6 cases give no interval: NaN.
    """
    if not np.array_equal(one.rows, other.rows):
        raise ValueError("two models are compared on different tiles")
    whole = [float(each.figures()[figure][0]) for each in (one, other)]
    difference = whole[0] - whole[1]
    names, case = np.unique(cases, return_inverse=True)
    if len(names) < LEAST_CASES or np.isnan(difference):
        return difference, _NONE
    drawn = [_figures_under(each, _subsets(len(names), samples), case)[figure] for each in (one, other)]
    values = np.sort(np.nan_to_num(drawn[0] - drawn[1], nan=0.0).round(_DIGITS))
    beyond = int((100 - _LEVEL) / 200 * (len(values) + 1)) - 1
    return difference, (float(values[beyond]), float(values[-1 - beyond]))


def percentile_interval(values: np.ndarray, cases: int, level: float = _LEVEL) -> Interval:
    """The expanded percentile interval of bootstrapped figures of `cases` cases; NaN if none is known.

    Bootstrap resamples of n cases vary too little, by sqrt((n - 1) / n), and have normal quantiles although the spread
    is estimated from n cases. The lower end is therefore the quantile Phi(sqrt(n / (n - 1)) t), where t is the 2.5 %
    point of Student's distribution with n - 1 degrees of freedom, and the upper end its mirror image (Hesterberg, "What
    Teachers Should Know about the Bootstrap", arXiv 1411.5279). At 6 cases that is 0.24 %, at 70 cases 2.2 %.
    """
    known = values[~np.isnan(values)]
    if not len(known) or cases < 2:
        return _NONE
    tail = special.ndtr(math.sqrt(cases / (cases - 1)) * special.stdtrit(cases - 1, (100 - level) / 200))
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def _figures_under(answers: Answers, weights: np.ndarray, case: np.ndarray, tiles: np.ndarray | None = None) -> Figures:
    """Each figure, [samples], under case weights [samples, cases]; `case` is the case index of each tile.

    `tiles`, float64 [N], multiplies the weights of tiles.
    """
    at_once = max(1, _WEIGHTS_AT_ONCE // max(1, len(case)))
    parts = [
        answers.figures(weights[start : start + at_once, case].astype(np.float64) * (1.0 if tiles is None else tiles))
        for start in range(0, len(weights), at_once)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _subsets(size: int, samples: int) -> np.ndarray:
    """Non-empty subsets of `size` cases, [subsets, size] of 0 and 1: all, or `samples` of them if there are more."""
    if 2**size - 1 <= max(samples, 2**LEAST_CASES - 1):
        return np.arange(1, 2**size)[:, None] >> np.arange(size) & 1
    member = np.random.default_rng(0).integers(0, 2, (2 * samples, size))
    return member[member.any(1)][:samples]
