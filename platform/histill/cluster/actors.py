"""The same work on many items by a pool of actors that each hold something dear to load, such as a network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from histill.cluster.ray_logging import import_ray_data
from histill.config.common import Workers

Work = Callable[[dict[str, Any]], Mapping[str, Any]]


def map_actors(
    items: Sequence[Mapping[str, Any]], make: Callable[..., Work], arguments: tuple[Any, ...], workers: Workers
) -> Iterator[dict[str, Any]]:
    """What `make(*arguments)`, called once in each actor, makes of each item; results come as they are done.

    Ray Data runs the pool of at most `workers.count` actors, and does again what a lost one had begun. Items and
    results are of plain values. Errors of the work are raised as they were.
    """
    data = import_ray_data()
    dataset = data.from_items(list(items), override_num_blocks=len(items))
    results = dataset.map_batches(
        _Actor,
        fn_constructor_args=(make, arguments),
        batch_size=1,
        batch_format="pyarrow",
        # all at once where there is room: a pool that grows by itself keeps the others waiting
        compute=data.ActorPoolStrategy(
            min_size=1,
            max_size=workers.count,
            initial_size=min(workers.count, max(1, len(items))),
            max_tasks_in_flight_per_actor=2,  # one waits while one is worked on; more, and the last ones lie unevenly
        ),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    yield from results.iter_rows()


class _Actor:
    def __init__(self, make: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
        self._work = make(*arguments)

    def __call__(self, items: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([dict(self._work(item)) for item in items.to_pylist()])
