"""Read row groups with Ray Data: requests of the plan in, encoded tables out, in order."""

from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from histill.cluster.ray_logging import import_ray_data
from histill.stream.read import ReadRequest, ShardReader, TileSource
from histill.tiles.contents import Expected


def read_by_ray_data(
    source: TileSource, reads: Iterable[ReadRequest], *, reads_per_task: int = 4
) -> Generator[pa.Table]:
    """Yield the tables of a `ShardReader` in the order of `reads`, read ahead by Ray Data tasks across the cluster.

    Bytes stay encoded: a decoded tile is about nine times as large, and moving it costs as much as decoding it.
    """
    items = [_item(read) for read in reads]
    if not items:
        return
    # from_items creates its blocks in this process. from_arrow would start a task that needs a whole CPU to get their
    # sizes, and that task would wait forever while trials occupy all CPUs of the cluster.
    dataset = import_ray_data().from_items(items, override_num_blocks=-(-len(items) // reads_per_task))
    dataset.context.execution_options.preserve_order = True
    dataset.context.execution_options.verbose_progress = False
    dataset.context.enable_progress_bars = False
    tables = dataset.map_batches(_Read(source), batch_size=None, batch_format="pyarrow", num_cpus=0.25)
    yield from tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _item(read: ReadRequest) -> dict[str, Any]:
    """Convert a request to plain values."""
    ids, contents = ([], []) if read.expected is None else read.expected.lists()
    place = {"shard": read.shard, "row_group": read.row_group, "checked": read.expected is not None}
    return place | {"rows": read.rows.tolist(), "entries": read.entries.tolist(), "ids": ids, "contents": contents}


def _read(item: dict[str, Any]) -> ReadRequest:
    """The inverse of `_item`."""
    expected = Expected(item["ids"], item["contents"]) if item["checked"] else None
    return ReadRequest(item["shard"], item["row_group"], np.array(item["rows"]), np.array(item["entries"]), expected)


class _Read:
    """The function of one read task; a class that holds the source, since a closure would be pickled whole."""

    def __init__(self, source: TileSource) -> None:
        self.source = source

    def __call__(self, plan: pa.Table) -> Iterator[pa.Table]:
        reader = ShardReader()
        yield from reader(self.source, map(_read, plan.to_pylist()))
