"""The Pareto front of quality and cost."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TradeOff:
    """The quality and cost of a trial."""

    name: str
    quality: float  # higher is better
    cost: float  # lower is better


def pareto_front(points: Sequence[TradeOff]) -> tuple[TradeOff, ...]:
    """The points that no other dominates (is as good in both and better in one), cheapest first: the Pareto front."""
    kept: list[TradeOff] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.quality)):
        # Kept points are cheaper or equal, so a new one must have a higher quality; ties in both are kept.
        if (
            not kept
            or point.quality > kept[-1].quality
            or (point.quality, point.cost) == (kept[-1].quality, kept[-1].cost)
        ):
            kept.append(point)
    return tuple(kept)


def dominance_count(point: TradeOff, points: Sequence[TradeOff]) -> int:
    """How many of `points` are on fronts before that of `point`, which is one of them.

    Fronts are peeled off one after the other: non-dominated sorting (Deb et al., IEEE Trans. Evol. Comput. 6:182,
    2002).
    """
    rest, ahead = list(points), 0
    while point not in (best := pareto_front(rest)):
        ahead += len(best)
        rest = [each for each in rest if each not in best]
    return ahead
