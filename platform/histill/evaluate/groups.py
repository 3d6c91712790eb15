"""A model's main figure by the values of a column, such as center or scanner: which group is surely worse."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from histill.evaluate.bootstrap import LEAST_CASES, Interval, bootstrap_groups, percentile_interval
from histill.evaluate.predictions import Predictions

NO_VALUE = "(no value)"
FAMILY = 5.0  # per cent: how often some group of a column seems surely worse although none is
_UNKNOWN: Interval = (math.nan, math.nan)


@dataclass(frozen=True)
class Group:
    """The tiles of a split that share a value, beside all others.

    `difference` is the group's main figure less that of the other tiles, from `low` to `high` by resampled cases. The
    upper end of the interval is exceeded by chance in 5 % divided by the number of groups, so that in 19 of 20 columns
    without any difference no group lies surely below the others. NaN where there is no interval: below six cases.
    """

    tiles: int
    cases: int
    figure: float
    difference: float
    low: float
    high: float


def score_groups(answers: Predictions, cases: np.ndarray, values: np.ndarray, samples: int) -> dict[str, Group]:
    """Each group of a column, worst first; `cases` and `values` name the case and the value (or None) of each tile.

    Cases are resampled as wholes, so that one with tiles in several groups counts as a pair. Classes that a group lacks
    are left out of its figure. `samples` is the number of resamples; 0 gives no intervals.
    """
    named = np.array([NO_VALUE if value is None else str(value) for value in values], object)
    names, group = np.unique(named.astype(str), return_inverse=True)
    main = answers.spec.main_metric
    inside = (group == np.arange(len(names))[:, None]).astype(np.float64)
    figures, others = (answers.figures(weights)[main] for weights in (inside, 1 - inside))
    found = {}
    for number, name in enumerate(names.tolist()):
        size = len(np.unique(cases[group == number]))
        low, high = _UNKNOWN
        if samples and size >= LEAST_CASES and len(names) > 1:
            drawn = bootstrap_groups(answers, cases, inside[number], main, samples, seed=0)
            low, high = percentile_interval(drawn, size, level=100 - 2 * FAMILY / len(names))
        difference = float(figures[number] - others[number]) if len(names) > 1 else math.nan
        found[name] = Group(int(inside[number].sum()), size, float(figures[number]), difference, low, high)
    return dict(sorted(found.items(), key=lambda item: (math.isnan(item[1].figure), item[1].figure)))


def find_gap(groups: Mapping[str, Group]) -> float:
    """The best group's figure less the worst one's; NaN for fewer than two groups with a figure."""
    known = [each.figure for each in groups.values() if not math.isnan(each.figure)]
    return max(known) - min(known) if len(known) > 1 else math.nan


def find_surely_worse(groups: Mapping[str, Group], margin: float) -> dict[str, Group]:
    """The groups that lie below the others by more than `margin`, whichever cases had been drawn."""
    return {name: each for name, each in groups.items() if each.high < -margin}
