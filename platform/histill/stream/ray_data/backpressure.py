"""Bound what the graph holds ahead of its consumer: so many blocks planned, and so many read or being read.

Ray Data's own policies bound bytes of the object store, of which a run would take most, and tiny blocks without end.
"""

import time
from collections.abc import Iterable

import ray
from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.data._internal.execution.streaming_executor_state import WAIT_FOR_TASK_COMPLETION_TIMEOUT_S

_KEY = "histill.blocks_ahead"


def bound_blocks_ahead(context: DataContext, blocks: int) -> None:
    """Let executions of `context` hold at most `blocks` blocks that were read, or are being read, and as many plans."""
    context.set_config(_KEY, blocks)
    policies = [*ENABLED_BACKPRESSURE_POLICIES, BlocksAhead]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)


class BlocksAhead(BackpressurePolicy):
    """Holds back an operator while enough of its blocks are under way or waiting."""

    def can_add_input(self, op: PhysicalOperator) -> bool:
        """Whether another task of `op` may start."""
        return not isinstance(op, MapOperator) or self._blocks_of(op) < self._data_context.get_config(_KEY)

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        """0 for an operator whose blocks wait for the next one.

        The executor looks at its tasks again and again, and waits in between only for one that is not ready: with one
        that is held back, or without any, it would take a whole core. So this waits in its place.
        """
        if not isinstance(op, MapOperator) or not op.output_dependencies:
            return None
        held = self._waiting(op) >= self._data_context.get_config(_KEY)
        if held or op.has_execution_finished():
            _await_tasks(op.output_dependencies)
        return 0 if held else None

    def _blocks_of(self, op: MapOperator) -> int:
        return op.num_active_tasks() + self._waiting(op)

    def _waiting(self, op: MapOperator) -> int:
        return op.internal_output_queue_num_blocks() + self._topology[op].output_queue.num_blocks


def _await_tasks(operators: Iterable[PhysicalOperator]) -> None:
    """Wait for news of any task of these operators, as long as the executor would."""
    tasks = [task.get_waitable() for each in operators for task in each.get_active_tasks()]
    if tasks:
        ray.wait(tasks, timeout=WAIT_FOR_TASK_COMPLETION_TIMEOUT_S, fetch_local=False)
    else:
        time.sleep(WAIT_FOR_TASK_COMPLETION_TIMEOUT_S)
