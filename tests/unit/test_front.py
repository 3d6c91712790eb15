"""Pareto's front: what no other trial beats in both quality and cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.search.front import Point, front, picture

pytestmark = pytest.mark.unit

numbers = st.integers(0, 6)


@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_the_front_is_what_nothing_dominates(pairs: list[tuple[int, int]]) -> None:
    points = [Point(str(number), quality, cost) for number, (quality, cost) in enumerate(pairs)]

    def beaten(point: Point) -> bool:
        return any(
            other.quality >= point.quality
            and other.cost <= point.cost
            and (other.quality, other.cost) != (point.quality, point.cost)
            for other in points
        )

    found = front(points)
    assert {point.name for point in found} == {point.name for point in points if not beaten(point)}
    assert [point.cost for point in found] == sorted(point.cost for point in found)


def test_the_picture_is_a_png() -> None:
    points = [Point("cheap", 0.6, 0.1), Point("dear", 0.8, 1.0), Point("beaten", 0.5, 0.9)]
    assert picture(points, "Dice", "GMACs").startswith(b"\x89PNG")
