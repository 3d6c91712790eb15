"""One execution serves a whole run: its passes are continued in order, and started anew out of order."""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from histill.config.augment import Augment
from histill.config.common import Storage
from histill.stream.passes import Pass, Series
from histill.stream.ray_data.decode import DecodeTiles, ReadTiles
from histill.stream.ray_data.plan_chunks import Entry
from histill.stream.ray_data.read_passes import PassReader, Plan, StreamPasses, Work, is_smaller_decoded
from histill.stream.read import DecodedCacheSpec, TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit

SERIES = Series(True, 5)
EPOCHS = 3


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=27, tile_px=64, masks=False)


class InThisProcess:
    """Does the work of the tasks, and notes it."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.blocks = self.ended = 0

    def __call__(self, plan: Plan, work: Work, ahead: int) -> Generator[pa.Table]:
        self.works.append(work)
        try:
            for block in plan():
                self.blocks += 1
                yield work(block)
        finally:
            self.ended += 1


def run(manifest: Manifest, side: int = 16, **changes: Any) -> tuple[InThisProcess, TileStream, TileStream]:
    """The streams of a run of EPOCHS epochs, with a validation after each."""
    execute = InThisProcess()
    reader = PassReader(execute)

    def stream(name: str, split: str) -> TileStream:
        source, passes = TileSource(manifest.uri, manifest.header.digest, Storage()), StreamPasses(reader, name)
        return TileStream(manifest, source, split, Views(side), 4, 0, 1, passes=passes, **changes)

    training, validation = stream("training", "train"), stream("validation", "val")
    reader.streams = {"training": training, "validation": validation}
    every = [
        (Entry("training", Pass(SERIES, each)), Entry("validation", Pass(Series(False)))) for each in range(EPOCHS)
    ]
    reader.timetable = [entry for pair in every for entry in pair]
    return execute, training, validation


def shown(batches: Any) -> list[tuple[bytes, list[int]]]:
    return [(batch.student.numpy().tobytes(), batch.index.tolist()) for batch in batches]


def alone(stream: TileStream) -> TileStream:
    return replace(stream, passes=None)


def test_a_run_is_one_execution(manifest: Manifest) -> None:
    execute, training, validation = run(manifest)
    for epoch in range(EPOCHS):
        assert shown(training.training_epoch(epoch, seed=5)) == shown(alone(training).training_epoch(epoch, seed=5))
        assert shown(validation.exact_pass()) == shown(alone(validation).exact_pass())
    assert len(execute.works) == 1
    training.close()
    assert execute.ended == 1


def test_a_run_goes_on_from_the_middle_of_an_epoch(manifest: Manifest) -> None:
    execute, training, validation = run(manifest)
    expected = shown(alone(training).training_epoch(1, seed=5))
    assert shown(training.training_epoch(1, seed=5, from_step=3)) == expected[3:]
    assert len(shown(validation.exact_pass())) == validation.steps
    assert len(shown(training.training_epoch(2, seed=5))) == training.steps
    assert len(execute.works) == 1


def test_a_pass_out_of_turn_starts_another_execution(manifest: Manifest) -> None:
    execute, training, validation = run(manifest)
    first = shown(validation.exact_pass())  # before the first epoch: it is read alone
    assert (len(execute.works), execute.blocks) == (1, 1)
    assert first == shown(alone(validation).exact_pass())
    whole = shown(training.training_epoch(0, seed=5))
    running = training.training_epoch(1, seed=5)  # the validation before it is left out
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert shown(training.training_epoch(0, seed=5)) == whole
    assert shown(training.training_epoch(0, seed=6)) == shown(alone(training).training_epoch(0, seed=6))
    assert len(execute.works) == 5


def test_a_worker_without_a_tile_gets_its_padded_batch(manifest: Manifest) -> None:
    _, training, _ = run(manifest, only=np.array([0, 1]))
    ours = replace(training, worker=3, workers=4)
    reader = PassReader(InThisProcess())
    reader.streams = {"training": (ours := replace(ours, passes=StreamPasses(reader, "training")))}
    assert shown(ours.exact_pass()) == shown(alone(ours).exact_pass())


def test_what_crosses_is_what_is_smaller(manifest: Manifest) -> None:
    """Views of one tile are compared with a tile as it is stored, here a few KB of JPEG."""
    header = replace_header(manifest, shard_bytes=27 * 4000)
    execute, training, _ = run(manifest)
    spec = training.spec(Pass(SERIES))

    def decoded(views: Views, **changes: Any) -> bool:
        return is_smaller_decoded(replace(spec.how, views=views), replace(spec.source, **changes), header)

    assert decoded(Views(32))  # 3072 bytes
    assert not decoded(Views(40))  # 4800
    assert not decoded(Views(32, 32))
    cropped = replace(spec.how, views=Views(64), augment=Augment(crop_px=32))
    assert is_smaller_decoded(cropped, spec.source, header)
    assert decoded(Views(64), kept=DecodedCacheSpec(64, 64))  # tiles that the cache keeps decoded
    assert not is_smaller_decoded(replace(spec.how, views=Views(64)), spec.source, replace_header(manifest, None))
    next(training.training_epoch(0, seed=5))
    assert isinstance(execute.works[0], DecodeTiles if decoded(Views(16)) else ReadTiles)


def replace_header(manifest: Manifest, shard_bytes: int | None) -> Any:
    return manifest.header.model_copy(update={"shard_bytes": shard_bytes})


def test_views_that_differ_from_stored_tiles_cross_encoded(manifest: Manifest) -> None:
    execute, training, _ = run(manifest, side=64)
    training = replace(training)
    assert torch.equal(
        next(training.training_epoch(0, seed=5)).student, next(alone(training).training_epoch(0, seed=5)).student
    )
    (work,) = execute.works
    assert isinstance(work, ReadTiles)


def test_a_task_needs_no_torch() -> None:
    """Most of the time that a process takes to start would be torch's."""
    import subprocess
    import sys

    program = (
        "import sys, histill.stream.ray_data.decode, histill.stream.ray_data.plan_chunks; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_the_split_and_the_folder_are_read_where_the_plan_is_made(manifest: Manifest, tmp_path: Path) -> None:
    """What is sent to the planning task does not grow with the set."""
    import cloudpickle

    seen: list[int] = []

    def execute(plan: Plan, work: Work, ahead: int) -> Generator[pa.Table]:
        seen.append(len(cloudpickle.dumps(plan)) + len(cloudpickle.dumps(work)))
        yield from (work(block) for block in plan())

    _, training, _ = run(manifest)
    training.passes.reader.execute = execute  # type: ignore[union-attr]
    next(training.training_epoch(0, seed=5))
    assert seen[0] < 20_000
