"""The graph of Ray Data itself, over blocks that hold nothing but a number."""

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from histill.local.ray_head import RayHead
from histill.stream.ray_data import backpressure
from histill.stream.ray_data.graph import RayDataGraph

pytestmark = pytest.mark.ray_local

BLOCKS, AHEAD = 30, 2  # of a Ray of 4 CPUs, so that 7 blocks may wait for the consumer
PAUSE_S = 2.0
LOOKS = 40  # in a pause: ten a second, and some; the executor would look a thousand times a second


def plan() -> Iterator[pa.Table]:
    return (pa.table({"number": [number]}) for number in range(BLOCKS))


def double(block: pa.Table) -> pa.Table:
    return pa.table({"number": [2 * block["number"][0].as_py()]})


@pytest.mark.parametrize("taken", [1, BLOCKS - 10])
def test_nothing_is_asked_again_and_again_while_the_consumer_pauses(
    ray_local: RayHead, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """Neither while the plan is held back, nor when all is planned, no task is left and blocks are held back."""
    looks = 0
    limit = backpressure.BlocksAhead.max_task_output_bytes_to_read

    def count(self: Any, op: Any) -> int | None:
        nonlocal looks
        looks += not op.output_dependencies  # one of the operators, so once a look
        return limit(self, op)

    monkeypatch.setattr(backpressure.BlocksAhead, "max_task_output_bytes_to_read", count)
    blocks = RayDataGraph()(plan, double, AHEAD)  # type: ignore[arg-type]
    numbers = [next(blocks)["number"][0].as_py() for _ in range(taken)]
    time.sleep(PAUSE_S)  # for what was asked for to arrive
    looks = 0
    time.sleep(PAUSE_S)
    assert 0 < looks <= LOOKS
    assert [*numbers, *(block["number"][0].as_py() for block in blocks)] == [2 * number for number in range(BLOCKS)]
