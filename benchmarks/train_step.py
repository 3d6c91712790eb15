"""The cost of the training loop compared with a hand-written one, and of a teacher compared with none.

    python -m benchmarks.train_step [--quick]

One process, no Ray: 512 px tiles from a local folder, a CSAT that sees them at 128 px, batches of 16. Four ways to make
the same step take turns: histill's loop on cached responses; a loop written by hand in PyTorch over the same batches;
histill's loop without any teacher (the same loss against a constant); and histill's loop with a live teacher (ResNet-50
U-Net at 448 px, untrained, which costs the same). A step is timed from one call of the loss to the next, data included.
Prints a JSON line per measurement, a table, and as its last line the medians of the rounds' ratios:
{"loop_over_bare": r, "cached_over_no_teacher": r, "live_over_cached": r}.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

from benchmarks.loaders.tiles import SIDE_PX, make_tiles
from histill.artifacts.model_folder import ModelCard, build
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig, RckdLoss
from histill.outputs import OutputSpec
from histill.stream.cached_views import CachedViews
from histill.stream.read import ShardReader, TileSource
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.responses import Responses
from histill.tasks.task import LossOutput, Student, Task
from histill.tasks.training_task import TrainingTask
from histill.teachers.classical import ClassicalTeacher
from histill.teachers.network import NetworkTeacher
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import write_manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.shards import Tile, content_hash, shards_of, write_shard
from histill.train.checkpoint import Learner
from histill.train.coverage import DataState
from histill.train.loop import Hooks, train
from histill.train.schedule import learning_rate, make_optimizer

BATCH, STUDENT_PX, TEACHER_PX, PER_GROUP = 16, 128, 448, 16
CLASSES = ("background", "nucleus")
OUTPUTS = OutputSpec("segmentation", CLASSES)
STORAGE = Storage()


@dataclass
class Clocked:
    """A task that records when each loss is computed."""

    task: Task
    clock: Callable[[], float] = time.perf_counter
    times: list[float] = field(default_factory=list)

    def loss(self, model: Student, batch: TileBatch) -> LossOutput:
        self.times.append(self.clock())
        return self.task.loss(model, batch)

    def build_metric(self, tiles: np.ndarray) -> Any:
        return self.task.build_metric(tiles)


class NoTeacher(Responses):
    """A response that is always 0."""

    def answer(
        self, batch: TileBatch, outputs: OutputSpec, size_px: int | None = None, *, graph: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        side = batch.student.shape[-1]
        return torch.zeros(len(batch.student), len(CLASSES), side, side), {}


def rckd(responses: Responses) -> TrainingTask:
    return TrainingTask(OUTPUTS, RckdLoss(), responses, scored_by_teacher=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of fewer steps")
    arguments = parser.parse_args()
    rounds, steps = (2, 6) if arguments.quick else (3, 16)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="train-step-") as name:
        manifest = tile_set(Path(name), steps * BATCH)
        responses = answered(manifest, Path(name) / "responses")
        rows = [one_round(manifest, responses, number) for number in range(rounds)]
    ways = list(rows[0])
    print(tabulate([[way, *(f"{row[way] * 1000:.0f}" for row in rows)] for way in ways], headers=["ms per step"]))
    ratios = {
        "loop_over_bare": [row["loop"] / row["bare"] for row in rows],
        "cached_over_no_teacher": [row["loop"] / row["no teacher"] for row in rows],
        "live_over_cached": [row["live"] / row["loop"] for row in rows],
    }
    print(json.dumps({name: round(statistics.median(values), 3) for name, values in ratios.items()}))


def one_round(manifest: Manifest, responses: CachedViews, number: int) -> dict[str, float]:
    """Seconds per step (medians) of each way; the order rotates with the round."""
    cached, plain = rckd(Responses(None)), rckd(NoTeacher(None))
    ways: dict[str, Callable[[], list[float]]] = {
        "loop": lambda: by_histill(manifest, cached, responses, number),
        "bare": lambda: by_hand(manifest, responses, number),
        "no teacher": lambda: by_histill(manifest, plain, None, number),
        "live": lambda: by_histill(manifest, rckd(Responses(teacher())), None, number, live=True),
    }
    names = list(ways)[number % 3 :] + list(ways)[: number % 3]
    seconds = {}
    for name in names:
        times = ways[name]()
        seconds[name] = statistics.median(np.diff(times)[1:])
        print(json.dumps({"round": number, "way": name, "step_s": round(seconds[name], 4)}), flush=True)
    return {name: seconds[name] for name in ways}


def by_histill(
    manifest: Manifest, task: Task, responses: CachedViews | None, seed: int, *, live: bool = False
) -> list[float]:
    """One epoch with the training loop; with a live teacher, which is slow, a part of one."""
    clocked, config, learner = Clocked(task), configured(manifest, seed), learned(manifest, seed)
    training = stream(manifest, "train", responses, live=live)
    if live:
        training = _Few(training, 4)  # type: ignore[assignment]
        try:
            train(learner, learner.model, clocked, training, training, config, Hooks(lambda _: None, lambda _: None))
        except _Enough:
            return clocked.times
    train(
        learner, learner.model, clocked, training, stream(manifest, "val", responses), config,
        Hooks(lambda _: None, lambda _: None),
    )  # fmt: skip
    return clocked.times


def by_hand(manifest: Manifest, responses: CachedViews, seed: int) -> list[float]:
    """The same epoch, hand-written for this case."""
    config, learner = configured(manifest, seed), learned(manifest, seed)
    model, optimizer, times = learner.model, learner.optimizer, []
    training = stream(manifest, "train", responses)
    model.train()
    batches = training.training_epoch(0, seed=seed, augment=config.data.augment)
    for step, batch in enumerate(batches):
        times.append(time.perf_counter())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, training.steps)
        logits = model(batch.student.float())
        assert batch.response is not None
        nucleus = ((batch.response.float() - 128) * (10 / 127)).sigmoid()
        nucleus = F.adaptive_avg_pool2d(nucleus, STUDENT_PX)
        target = torch.cat([1 - nucleus, nucleus], 1)
        loss = -(target * logits.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
    return times


class _Enough(Exception):
    """Enough steps were timed."""


class _Few:
    """A stream that ends the epoch, and the run, after a few steps."""

    def __init__(self, whole: TileStream, steps: int) -> None:
        self._whole, self._few = whole, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def training_epoch(self, *arguments: Any, **options: Any) -> Iterator[TileBatch]:
        for number, batch in enumerate(self._whole.training_epoch(*arguments, **options)):
            if number == self._few:
                raise _Enough
            yield batch


def stream(manifest: Manifest, split: str, responses: CachedViews | None, *, live: bool = False) -> TileStream:
    return TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, STORAGE, responses=responses),
        split=split,
        views=Views(STUDENT_PX, SIDE_PX if live else None),
        batch_size=BATCH,
        worker=0,
        workers=1,
        read=ShardReader(2),
        threads=1,
    )


def learned(manifest: Manifest, seed: int) -> Learner:
    torch.manual_seed(seed)
    card = ModelCard(
        encoder="csat",
        decoder_channels=(48, 32, 24, 16, 16),
        classes=CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        tile_px=SIDE_PX,
        tile_mpp=0.25,
        size_px=STUDENT_PX,
        tiles_digest="",
        train_cases=(),
        histill="",
    )
    model = build(card)
    position = DataState(batch_size=BATCH, tiles_digest="")
    return Learner(model, make_optimizer([list(model.parameters())], configured(manifest, seed).optimizer), position)


def configured(manifest: Manifest, seed: int) -> PretrainConfig:
    data = {
        "name": "step",
        "runs": "unused",
        "data": {"tiles": manifest.uri, "batch_size": BATCH, "seed": seed},
        "teacher": {"classical": True},
        "optimizer": {"epochs": 1},
        "workers": {"count": 1},
    }
    return validate(PretrainConfig, data, "the benchmark")


def teacher() -> NetworkTeacher:
    torch.manual_seed(0)
    card = ModelCard(
        encoder="resnet50",
        decoder_channels=(256, 128, 64, 32, 16),
        classes=CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        tile_px=SIDE_PX,
        tile_mpp=0.25,
        size_px=TEACHER_PX,
        tiles_digest="",
        train_cases=(),
        histill="",
    )
    return NetworkTeacher(build(card).eval().requires_grad_(False), OUTPUTS, "", 0.25, SIDE_PX, TEACHER_PX)


def tile_set(folder: Path, tiles: int) -> Manifest:
    """`tiles` training tiles and a validation batch."""
    images = [path.read_bytes() for path in make_tiles(folder / "jpeg", tiles + BATCH, 0)]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(images), 4 * PER_GROUP):
        shard = f"shards/{start:06d}.parquet"
        part = [
            Tile(f"{start + place}", "slide", "case", 0, 0, 0.25, None, image, None)
            for place, image in enumerate(images[start : start + 4 * PER_GROUP])
        ]
        write_shard(str(folder / "tiles" / shard), part, PER_GROUP, STORAGE)
        rows += [
            {"tile_id": tile.tile_id, "slide": "slide", "case": "case", "x": 0, "y": 0, "mpp": 0.25, "size_px": SIDE_PX}
            | {"label": None, "has_mask": False, "split": "train" if start + place < tiles else "val", "shard": shard}
            | {
                "row_group": place // PER_GROUP,
                "row": place % PER_GROUP,
                "content": content_hash(tile.image, tile.mask),
            }
            for place, tile in enumerate(part)
        ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST)
    return write_manifest(str(folder / "tiles"), table, tile_px=SIDE_PX, mpp=0.25, ingest="generator", storage=STORAGE)


def answered(manifest: Manifest, folder: Path) -> CachedViews:
    """The classical teacher's responses, with realistic sizes."""
    cached = CachedViews(str(folder), OUTPUTS)
    data = {"tiles": manifest.uri, "teacher": {"classical": True}, "output": str(folder)}
    job = ResponseJob(validate(CacheConfig, data, "the benchmark"), cached)
    for shard in shards_of(manifest):
        write_shard_responses(ClassicalTeacher(0.25), manifest, shard, job)
    return cached


if __name__ == "__main__":
    main()
