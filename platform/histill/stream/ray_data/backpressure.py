"""Bound what the graph holds ahead of its consumer: so many blocks planned, and so many read or being read.

Ray Data's own policies bound bytes of the object store, of which a run would take most, and tiny blocks without end.
"""

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.map_operator import MapOperator

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
        """0 for an operator whose blocks wait for the next one."""
        is_source = isinstance(op, MapOperator) and op.output_dependencies
        return 0 if is_source and self._waiting(op) >= self._data_context.get_config(_KEY) else None

    def _blocks_of(self, op: MapOperator) -> int:
        return op.num_active_tasks() + self._waiting(op)

    def _waiting(self, op: MapOperator) -> int:
        return op.internal_output_queue_num_blocks() + self._topology[op].output_queue.num_blocks
