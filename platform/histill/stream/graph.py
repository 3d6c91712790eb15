"""The Ray Data graph: row groups named by the plan in, encoded tables out, in order."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from histill.cluster.quiet import ray_data
from histill.stream.read import GroupRead, Source, read_groups


def encoded_tables(source: Source, reads: Sequence[GroupRead], *, reads_per_task: int = 4) -> Iterator[pa.Table]:
    """The tables of `read_groups`, read ahead by Ray Data tasks across the cluster, in the order of `reads`.

    Bytes stay encoded: a decoded tile is about nine times as large, and moving it costs as much as decoding it.
    """
    if not reads:
        return
    chunks = [list(reads[start : start + reads_per_task]) for start in range(0, len(reads), reads_per_task)]
    dataset = ray_data().from_arrow([_as_table(chunk) for chunk in chunks])
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_options.verbose_progress = False
    dataset.context.enable_progress_bars = False
    tables = dataset.map_batches(_Read(source), batch_size=None, batch_format="pyarrow", num_cpus=0.25)
    yield from tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


class _Read:
    """The read of one task, as a callable that carries its source (a closure over it would be pickled whole)."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, plan: pa.Table) -> Iterator[pa.Table]:
        reads = [
            GroupRead(row["shard"], row["row_group"], tuple(row["rows"]), tuple(row["tiles"]))
            for row in plan.to_pylist()
        ]
        yield from read_groups(self.source, reads)


def _as_table(reads: Sequence[GroupRead]) -> pa.Table:
    return pa.table(
        {
            "shard": [read.shard for read in reads],
            "row_group": [read.row_group for read in reads],
            "rows": [list(read.rows) for read in reads],
            "tiles": [list(read.tiles) for read in reads],
        }
    )
