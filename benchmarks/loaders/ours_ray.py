"""histill's stream while the cluster decodes (`data.decode=cluster`), on a Ray of this machine.

One execution serves all epochs: its start is the first one, which includes the start of Ray, and is measured apart.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from benchmarks.loaders import ours
from benchmarks.loaders.parquet_shards import write
from benchmarks.loaders.target import Target

FORMAT = ours.FORMAT
EPOCHS = 4

__all__ = ["EPOCHS", "FORMAT", "open_epochs", "write"]


@contextmanager
def open_epochs(case: str, target: Target) -> Iterator[Callable[..., Iterator[tuple[torch.Tensor, ...]]]]:
    """A function that gives the batches of the next epoch, whatever it is called with; at most EPOCHS.

    The run has more epochs, so that no process ends while others are measured: its CPU would be lost.
    """
    from histill.cluster.connect import connect_cluster
    from histill.stream.passes import Pass, Series
    from histill.stream.ray_data.graph import RayDataGraph
    from histill.stream.ray_data.plan_chunks import Entry
    from histill.stream.ray_data.read_passes import PassReader, StreamPasses

    with connect_cluster():
        reader = PassReader(RayDataGraph())
        stream = replace(ours.make_stream(case, target), passes=StreamPasses(reader, "tiles"))
        reader.streams = {"tiles": stream}
        reader.timetable = [Entry("tiles", Pass(Series(True), epoch)) for epoch in range(4 * EPOCHS)]
        numbers = iter(range(EPOCHS))
        yield lambda *_: ours.read_epoch(stream, next(numbers))
        stream.close()
