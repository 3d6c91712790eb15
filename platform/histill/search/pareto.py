"""The Pareto front of quality and cost."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TradeOff:
    """A trial as the front sees it."""

    name: str
    quality: float  # higher is better
    cost: float  # lower is better


def pareto_front(points: Sequence[TradeOff]) -> tuple[TradeOff, ...]:
    """The points that no other is at least as good as in both and better in one, cheapest first (Pareto's front)."""
    kept: list[TradeOff] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.quality)):
        # What is kept is cheaper or equal, so only its quality can still be beaten; equals in both stay beside.
        if (
            not kept
            or point.quality > kept[-1].quality
            or (point.quality, point.cost) == (kept[-1].quality, kept[-1].cost)
        ):
            kept.append(point)
    return tuple(kept)


def dominance_count(point: TradeOff, points: Sequence[TradeOff]) -> int:
    """How many of `points` lie on fronts before that of `point`, which is one of them.

    The first front is that of all points, the next one that of what is left without it, and so on: the order that
    non-dominated sorting gives (Deb et al., IEEE Trans. Evol. Comput. 6:182, 2002).
    """
    rest, ahead = list(points), 0
    while point not in (best := pareto_front(rest)):
        ahead += len(best)
        rest = [each for each in rest if each not in best]
    return ahead
