"""Build a worker's learner and tile streams. Free of Ray, so that a run can also train without it."""

from dataclasses import replace

import torch
from timm.utils import ModelEmaV3

from histill.artifacts.model_folder import resolve
from histill.config.runs import RunConfig
from histill.models.projection import ProjectedStudent
from histill.stream.passes import Pass, Series
from histill.stream.ray_data.choose import decodes_in_cluster
from histill.stream.ray_data.graph import RayDataGraph
from histill.stream.ray_data.plan_chunks import Entry
from histill.stream.ray_data.read_passes import PassReader, StreamPasses, is_smaller_decoded
from histill.stream.read import ShardReader
from histill.stream.tile_stream import TileStream
from histill.tiles.manifest import Manifest
from histill.train.best import Best
from histill.train.checkpoint import Learner, continue_modules
from histill.train.coverage import DataState
from histill.train.spec import RunSpec


def build_learner(spec: RunSpec, manifest: Manifest, device: torch.device) -> Learner:
    """The learner before its first step, identical on every worker."""
    config = spec.config
    torch.manual_seed(config.seed)
    model = spec.build_model()
    if isinstance(model, ProjectedStudent) and config.continue_from is not None:
        continue_modules(model, resolve(config.continue_from, config.storage), config.storage)
    model = model.to(device)
    position = DataState(batch_size=config.data.batch_size, tiles_digest=manifest.header.digest)
    average = ModelEmaV3(model, decay=config.optimizer.ema, use_warmup=True) if config.optimizer.ema else None
    best = Best(spec.card.outputs.main_metric) if config.validation.keep == "best" else None
    return Learner(model, spec.build_optimizer(model), position, average, best)


def build_streams(spec: RunSpec, manifest: Manifest, worker: int, workers: int) -> tuple[TileStream, TileStream]:
    """The training and validation streams of `worker` out of `workers`."""
    config = spec.config
    data, labels, groups = config.data, spec.read_labels(manifest), spec.group_tiles(manifest)

    def stream(split: str, cases: frozenset[str] | None) -> TileStream:
        return TileStream(
            manifest=manifest,
            source=spec.source,
            split=split,
            cases=cases,
            labels=labels,
            views=spec.views,
            batch_size=data.batch_size,
            worker=worker,
            workers=workers,
            read=ShardReader(data.read_threads),
            threads=data.decode_threads,
            max_corrupt=data.max_corrupt,
            buffer_tiles=data.shuffle_tiles,
            balance=data.balance if groups is None else None,
            groups=groups,
        )

    training, validation = stream(data.train, spec.cases), stream(data.val, None)
    if not _is_decoded_in_cluster(config, training):
        return training, validation
    reader = PassReader(RayDataGraph(workers, data.decode_nodes))
    training = replace(training, passes=StreamPasses(reader, "training"))
    validation = replace(validation, passes=StreamPasses(reader, "validation"))
    reader.streams = {"training": training, "validation": validation}
    reader.timetable = list_passes(config, training.steps)
    return training, validation


def _is_decoded_in_cluster(config: RunConfig, training: TileStream) -> bool:
    group = config.workers
    if group.in_process:
        return False
    spec = training.spec(Pass(Series(True, config.data.seed, config.data.augment)))
    smaller = is_smaller_decoded(spec.how, spec.source, training.manifest.header)
    return decodes_in_cluster(config.data, training.workers, smaller=smaller, elastic=group.fewest < group.most)


def list_passes(config: RunConfig, steps: int) -> tuple[Entry, ...]:
    """The passes of a run over its training tiles, of `steps` global batches, and its validation tiles, in order."""
    epochs, series = config.epochs_of(steps), Series(True, config.data.seed, config.data.augment)
    entries = []
    for epoch in range(epochs):
        entries.append(Entry("training", Pass(series, epoch)))
        if epoch + 1 == epochs or config.validation.is_due(epoch, steps):
            entries.append(Entry("validation", Pass(Series(False))))
    return tuple(entries)
