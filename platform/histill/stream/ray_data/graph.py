"""The Ray Data graph: ReadPlan -> MapBatches(DecodeTiles or ReadTiles), one execution for all planned passes.

Tasks, not actors: an actor pool took four times the CPU outside the trainer (docs/results/streaming.md).
"""

import logging
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from histill.cluster.ray_blocks import iterate_blocks
from histill.cluster.ray_logging import import_ray_data
from histill.stream.ray_data.decode import DecodeTiles, ReadTiles
from histill.stream.ray_data.read_passes import Plan

logger = logging.getLogger(__name__)
_CPUS = 1.0  # of a task
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class RayDataGraph:
    """Executes the graph on the nodes with these Ray labels, or on all; `workers` share them, each with a graph."""

    workers: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, plan: Plan, work: ReadTiles | DecodeTiles, ahead: int) -> Generator[pa.Table]:
        import ray

        from histill.stream.ray_data.backpressure import bound_blocks_ahead
        from histill.stream.ray_data.plan_source import PlanSource

        data = import_ray_data()
        context = data.DataContext.get_current().copy()
        context.target_max_block_size = 1  # a block for every row, see chunks.py
        context.execution_no_progress_timeout_s = -1  # the consumer may take its time
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        context.execution_options.verbose_progress = False
        at_once = int(ray.cluster_resources().get("CPU", 1) / _CPUS / self.workers)
        bound_blocks_ahead(context, ahead + at_once + 1)
        with data.DataContext.current(context):
            planned = data.read_datasource(
                PlanSource(plan),
                num_cpus=0,
                override_num_blocks=1,
                label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            )
            worked = planned.map_batches(
                work,
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                num_cpus=_CPUS,
                **({"label_selector": dict(self.labels)} if self.labels else {}),
            )
        return self._blocks(worked)

    def _blocks(self, dataset: Any) -> Generator[pa.Table]:
        told = threading.Timer(_PATIENCE_S, self._tell_to_wait)
        told.daemon = True
        told.start()
        try:
            for block in iterate_blocks(dataset):
                told.cancel()
                yield block
        finally:
            told.cancel()
        logger.debug("%s", dataset.stats())

    def _tell_to_wait(self) -> None:
        named = " with the labels " + ", ".join(f"{key}={value}" for key, value in self.labels.items())
        logger.warning(
            "no node%s has had a CPU free to decode a tile for %.0f s; free one, or set data.decode=worker.",
            named if self.labels else "",
            _PATIENCE_S,
        )
