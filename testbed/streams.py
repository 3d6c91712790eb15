"""The stream in each of its modes, with what Ray's tasks would do done in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, get_args
from unittest.mock import patch

from histill.stream.ray_data import read_passes
from histill.stream.tile_stream import TileStream

Mode = Literal["by the worker", "read by tasks", "decoded by tasks"]
MODES: tuple[Mode, ...] = get_args(Mode)


@contextmanager
def small_tasks(mode: Mode) -> Iterator[None]:
    """Tasks of eight tiles, which decode only if `mode` says so, whatever would cross the network."""
    with (
        patch.object(read_passes, "is_smaller_decoded", lambda *_: mode == "decoded by tasks"),
        patch.object(read_passes, "CHUNK_TILES", 8),
    ):
        yield


def read_in(mode: Mode, tiles: TileStream) -> TileStream:
    """`tiles`, read and decoded as `mode` says."""
    if mode == "by the worker":
        return tiles
    reader = read_passes.PassReader(lambda plan, work, ahead: (work(block) for block in plan()))
    of_tasks = replace(tiles, passes=read_passes.StreamPasses(reader, "tiles"))
    reader.streams = {"tiles": of_tasks}
    return of_tasks
