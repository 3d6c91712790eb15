"""Quality against cost: which trials no other one beats in both."""

import io
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A trial as the front sees it."""

    name: str
    quality: float  # higher is better
    cost: float  # lower is better


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other is at least as good as in both and better in one, cheapest first (Pareto's front)."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda each: (each.cost, -each.quality)):
        # What is kept is cheaper or equal, so only its quality can still be beaten; equals in both stay beside.
        if (
            not kept
            or point.quality > kept[-1].quality
            or (point.quality, point.cost) == (kept[-1].quality, kept[-1].cost)
        ):
            kept.append(point)
    return tuple(kept)


def picture(points: Sequence[Point], quality: str, cost: str) -> bytes:
    """A PNG of all points, the front as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    best = front(points)
    axes.scatter([point.cost for point in points], [point.quality for point in points], color="grey", label="trials")
    axes.plot(
        [point.cost for point in best], [point.quality for point in best], "o-", drawstyle="steps-post", label="front"
    )
    for point in best:
        axes.annotate(point.name, (point.cost, point.quality), textcoords="offset points", xytext=(4, -10), fontsize=7)
    axes.set(xlabel=cost, ylabel=quality)
    axes.margins(0.15)
    axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
