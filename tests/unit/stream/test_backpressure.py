"""How far the graph may be ahead of its consumer."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.data import DataContext
from ray.data._internal.execution.operators.map_operator import MapOperator

from histill.stream.ray_data.backpressure import BlocksAhead, bound_blocks_ahead

pytestmark = pytest.mark.unit


def operator(running: int, inside: int, *, feeds: list[Any]) -> Any:
    op = MagicMock(spec=MapOperator)
    op.num_active_tasks.return_value = running
    op.internal_output_queue_num_blocks.return_value = inside
    op.output_dependencies = feeds
    return op


@pytest.mark.parametrize(
    ("running", "inside", "outside", "may"), [(0, 0, 0, True), (2, 1, 1, True), (3, 1, 1, False), (0, 0, 5, False)]
)
def test_blocks_that_run_or_wait_are_bounded(running: int, inside: int, outside: int, may: bool) -> None:
    context = DataContext.get_current().copy()
    bound_blocks_ahead(context, 5)
    last = operator(running, inside, feeds=[])
    source = operator(1, inside, feeds=[last])
    waiting = SimpleNamespace(output_queue=SimpleNamespace(num_blocks=outside))
    policy = BlocksAhead(context, {last: waiting, source: waiting}, MagicMock())
    assert policy.can_add_input(last) is may
    assert policy.max_task_output_bytes_to_read(last) is None  # its consumer may always take what is there
    assert policy.max_task_output_bytes_to_read(source) == (0 if inside + outside >= 5 else None)


def test_rays_own_policies_stay() -> None:
    context = DataContext.get_current().copy()
    bound_blocks_ahead(context, 5)
    assert [policy.__name__ for policy in context.get_config("backpressure_policies.enabled")][-1] == "BlocksAhead"
    assert len(context.get_config("backpressure_policies.enabled")) > 1
