"""The source of the graph: evaluates the plan, pass by pass, as far ahead as its consumer needs.

One task runs for as long as the run, on the node of its consumer, and holds no CPU: planning a tile takes microseconds.
It is a streaming generator, which waits while nobody takes what it has planned (`backpressure.py`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata


class PlanSource(Datasource):
    """The blocks that `plan` yields."""

    def __init__(self, plan: Callable[[], Iterator[pa.Table]]) -> None:
        super().__init__()
        self._plan = plan

    def get_read_tasks(self, parallelism: int, *arguments: Any, **options: Any) -> list[ReadTask]:
        return [ReadTask(self._plan, BlockMetadata(None, None, None, None))]

    def get_name(self) -> str:
        """What Ray Data shows, after `Read`."""
        return "Plan"

    def estimate_inmemory_data_size(self) -> None:
        return None
