"""The Pareto front: trials that no other beats in both quality and cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.search.pareto import TradeOff, dominance_count, pareto_front
from histill.search.pareto_asha import Rungs

pytestmark = pytest.mark.unit

numbers = st.integers(0, 6)


@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_the_front_is_what_nothing_dominates(pairs: list[tuple[int, int]]) -> None:
    points = [TradeOff(str(number), quality, cost) for number, (quality, cost) in enumerate(pairs)]

    def beaten(point: TradeOff) -> bool:
        return any(
            other.quality >= point.quality
            and other.cost <= point.cost
            and (other.quality, other.cost) != (point.quality, point.cost)
            for other in points
        )

    found = pareto_front(points)
    assert {point.name for point in found} == {point.name for point in points if not beaten(point)}
    assert [point.cost for point in found] == sorted(point.cost for point in found)


def dominates(point: TradeOff, other: TradeOff) -> bool:
    better = (point.quality, -point.cost) != (other.quality, -other.cost)
    return better and point.quality >= other.quality and point.cost <= other.cost


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12))
def test_ranks_are_those_of_non_dominated_sorting(pairs: list[tuple[int, int]]) -> None:
    points = [TradeOff(str(number), quality, cost) for number, (quality, cost) in enumerate(pairs)]
    layer: dict[TradeOff, int] = {}  # the longest chain of points that dominate each other above it
    for point in sorted(points, key=lambda each: (-each.quality, each.cost)):
        above = [layer[other] for other in layer if dominates(other, point)]
        layer[point] = 1 + max(above, default=-1)
    for point in points:
        assert dominance_count(point, points) == sum(layer[other] < layer[point] for other in points)


def test_the_first_trials_at_a_rung_go_on_and_the_beaten_stop() -> None:
    rungs = Rungs(1, 4, 2)
    assert rungs.goes_on(1, TradeOff("a", 0.5, 1.0))
    assert not rungs.goes_on(1, TradeOff("dear and bad", 0.4, 2.0))
    assert rungs.goes_on(1, TradeOff("bad and cheap", 0.1, 0.1))
    assert rungs.goes_on(1, TradeOff("good and dear", 0.9, 3.0))
    assert not rungs.goes_on(1, TradeOff("between", 0.4, 2.5))
    assert rungs.goes_on(3, TradeOff("no rung", 0.0, 9.0))
    assert rungs.goes_on(2, TradeOff("a", 0.5, 1.0))


def test_a_resumed_trial_is_counted_once() -> None:
    rungs = Rungs(1, 4, 2)
    for _ in range(3):
        assert rungs.goes_on(1, TradeOff("a", 0.5, 1.0))
    assert not rungs.goes_on(1, TradeOff("b", 0.4, 1.0))
