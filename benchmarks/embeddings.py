"""The cost of embeddings: of caching them, compared with a bare loop of the teacher, and of learning from the cache.

    python -m benchmarks.embeddings [--quick]

One process, one thread, no Ray: 512 px tiles from a local folder. The pass: a ResNet-50 that sees tiles at 224 px
(untrained, which costs the same) answers each tile with an embedding of 2048 dimensions. histill reads, decodes, writes
response shards and measures the statistics of the embeddings; the bare loop reads, decodes and runs the same network on
batches of the same size, and writes nothing. The epoch: a CSAT that sees tiles at 128 px, in batches of 16, learns by
cosine distance from the cached embeddings of one teacher and of two; without a teacher it learns by the same loss from
a constant. A step is timed from one call of the loss to the next, data included. The ways take turns. Times are CPU
seconds of the process, all its threads together, so that other work on the machine weighs less.
Prints a JSON line per measurement, a table, the ratios of each round, and as its last line their medians:
{"pass_over_bare": r, "cached_over_no_teacher": r, "two_over_no_teacher": r}.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.loaders.tiles import SIDE_PX
from benchmarks.train_step import BATCH, STORAGE, STUDENT_PX, Clocked, configured, tile_set
from histill.artifacts.model_folder import ModelCard, build
from histill.config.cache_responses import CacheConfig
from histill.config.load import validate
from histill.config.pretrain_student import RckdLoss
from histill.losses.layers import Layers
from histill.losses.terms.embedding_cosine import EmbeddingCosine
from histill.models.embedding_heads import EmbeddingShape, HeadSpec
from histill.models.encoders import embedding_width
from histill.models.projection import ProjectedStudent
from histill.models.transfer import Model
from histill.outputs import OutputSpec
from histill.storage.control import read_bytes
from histill.storage.uris import join
from histill.stream.cached_views import CachedViews
from histill.stream.read import ShardReader, TileSource
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.embeddings import Embeddings, EmbeddingSource
from histill.tasks.training_task import TrainingTask
from histill.teachers.embedding_statistics import measure_embeddings
from histill.teachers.network import NetworkTeacher
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.tiles.manifest import Manifest
from histill.tiles.shards import shards_of
from histill.train.checkpoint import Learner
from histill.train.coverage import DataState
from histill.train.loop import Hooks, train
from histill.train.schedule import make_optimizer

TEACHER_PX, WIDTH = 224, 2048
OUTPUTS = OutputSpec("encoder", width=WIDTH)


class NoTeacher(Embeddings):
    """Embeddings that are always the same."""

    def answer(self, batch: TileBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {name: torch.ones(len(batch.student), WIDTH) for name in self.sources}, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of fewer steps")
    rounds, steps = (2, 6) if parser.parse_args().quick else (3, 16)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="embeddings-") as name:
        manifest = tile_set(Path(name), steps * BATCH)
        passes = [one_pass(manifest, Path(name), number) for number in range(rounds)]
        cached = responses_of(Path(name), 0), responses_of(Path(name), 1)
        epochs = [one_round(manifest, cached, number) for number in range(rounds)]
    for rows, unit in ((passes, "ms per tile"), (epochs, "ms per step")):
        print(tabulate([[way, *(f"{row[way] * 1000:.1f}" for row in rows)] for way in rows[0]], headers=[unit]))
    ratios = {
        "pass_over_bare": [row["histill"] / row["bare"] for row in passes],
        "cached_over_no_teacher": [row["one teacher"] / row["no teacher"] for row in epochs],
        "two_over_no_teacher": [row["two teachers"] / row["no teacher"] for row in epochs],
    }
    print(json.dumps({name: [round(value, 3) for value in values] for name, values in ratios.items()}))
    print(json.dumps({name: round(statistics.median(values), 3) for name, values in ratios.items()}))


def one_pass(manifest: Manifest, folder: Path, number: int) -> dict[str, float]:
    """Seconds per tile of caching and of the bare loop; the order rotates with the round."""
    asked = teacher()
    cached = responses_of(folder, number)
    ways: dict[str, Callable[[], None]] = {
        "histill": lambda: cache(manifest, asked, cached),
        "bare": lambda: run_bare(manifest, asked),
    }
    seconds = {}
    for name in list(ways)[number % 2 :] + list(ways)[: number % 2]:
        start = time.process_time()
        ways[name]()
        seconds[name] = (time.process_time() - start) / manifest.header.tiles
        print(json.dumps({"round": number, "pass": name, "tile_s": round(seconds[name], 4)}), flush=True)
    return {name: seconds[name] for name in ways}


def responses_of(folder: Path, number: int) -> CachedViews:
    return CachedViews(str(folder / f"responses-{number}"), OUTPUTS)


def cache(manifest: Manifest, asked: NetworkTeacher, cached: CachedViews) -> None:
    data = {"tiles": manifest.uri, "teacher": {"classical": True}, "output": cached.uri, "batch_size": BATCH}
    job = ResponseJob(validate(CacheConfig, data, "the benchmark"), cached)
    for shard in shards_of(manifest):
        write_shard_responses(asked, manifest, shard, job)
    measure_embeddings(cached, manifest, STORAGE)


def run_bare(manifest: Manifest, asked: NetworkTeacher) -> None:
    for shard in shards_of(manifest):
        data = read_bytes(join(manifest.uri, shard.shard), STORAGE)
        images = pq.read_table(io.BytesIO(data), columns=["image"])["image"].to_pylist()
        for start in range(0, len(images), BATCH):
            pixels = np.stack([simplejpeg.decode_jpeg(each) for each in images[start : start + BATCH]])
            asked.respond(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def one_round(manifest: Manifest, cached: tuple[CachedViews, CachedViews], number: int) -> dict[str, float]:
    """Seconds per step (medians) of each way; the order rotates with the round."""
    ways: dict[str, Callable[[], list[float]]] = {
        "no teacher": lambda: learn(manifest, (), number),
        "one teacher": lambda: learn(manifest, cached[:1], number),
        "two teachers": lambda: learn(manifest, cached, number),
    }
    seconds = {}
    for name in list(ways)[number % 3 :] + list(ways)[: number % 3]:
        seconds[name] = statistics.median(np.diff(ways[name]())[1:])
        print(json.dumps({"round": number, "way": name, "step_s": round(seconds[name], 4)}), flush=True)
    return {name: seconds[name] for name in ways}


def learn(manifest: Manifest, cached: tuple[CachedViews, ...], seed: int) -> list[float]:
    """One epoch with the training loop; without caches, from a constant."""
    names = [f"teacher_{number}" for number in range(max(1, len(cached)))]
    sources = {name: EmbeddingSource(1.0, WIDTH, mean=(0.0,) * WIDTH) for name in names}
    embeddings = Embeddings(sources) if cached else NoTeacher(sources)
    torch.manual_seed(seed)
    model, config = build(card("csat", STUDENT_PX)), configured(manifest, seed)
    student = ProjectedStudent(model, Layers(), heads=HeadSpec({name: EmbeddingShape(WIDTH) for name in names}))
    loss = RckdLoss(soft_cross_entropy=None, deep=None, embedding_cosine=EmbeddingCosine())
    plain = TrainingTask(OutputSpec("encoder", width=embedding_width(model)), loss, embeddings=embeddings)
    task = Clocked(plain, clock=time.process_time)
    optimizer = make_optimizer([list(student.parameters())], config.optimizer)
    learner = Learner(student, optimizer, DataState(batch_size=BATCH, tiles_digest=""))
    named = tuple(zip(names, cached, strict=False))
    training, validation = (stream(manifest, split, named) for split in ("train", "val"))
    train(learner, student, task, training, validation, config, Hooks(lambda _: None, lambda _: None))
    return task.times


def stream(manifest: Manifest, split: str, cached: tuple[tuple[str, CachedViews], ...]) -> TileStream:
    return TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, STORAGE, embeddings=cached),
        split=split,
        views=Views(STUDENT_PX),
        batch_size=BATCH,
        worker=0,
        workers=1,
        read=ShardReader(2),
        threads=1,
    )


def teacher() -> NetworkTeacher:
    torch.manual_seed(0)
    model: Model = build(card("resnet50", TEACHER_PX)).eval().requires_grad_(False)
    return NetworkTeacher(model, OUTPUTS, "", 0.25, SIDE_PX, TEACHER_PX)


def card(encoder: str, size_px: int) -> ModelCard:
    return ModelCard(
        kind="encoder",
        encoder=encoder,
        decoder_channels=(),
        classes=(),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        tile_px=SIDE_PX,
        tile_mpp=0.25,
        size_px=size_px,
        tiles_digest="",
        train_cases=(),
        histill="",
    )


if __name__ == "__main__":
    main()
