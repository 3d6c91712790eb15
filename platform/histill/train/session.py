"""What one worker of a run holds: the learner and its streams. It knows no Ray, so that a run can do without."""

from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3

from histill.config.finetune import FinetuneConfig
from histill.config.runs import RunConfig
from histill.models.encoders import parameters_by_depth
from histill.stream.graph import read_by_ray_data
from histill.stream.read import ShardReader
from histill.stream.tile_stream import TileStream
from histill.teachers.cache import decisions
from histill.tiles.manifest import Manifest
from histill.train.assemble import make_model
from histill.train.checkpoint import Learner
from histill.train.ledger import Position
from histill.train.prepare import DISTILLING, Prepared
from histill.train.schedule import make_optimiser


def learner_of(prepared: Prepared, manifest: Manifest, device: torch.device) -> Learner:
    """The learner before its first step; the same on every worker."""
    config = prepared.config
    torch.manual_seed(config.seed)
    model = make_model(prepared).to(device)
    position = Position(batch_size=config.data.batch_size, tiles_digest=manifest.header.digest)
    average = ModelEmaV3(model, decay=config.optimiser.ema, use_warmup=True) if config.optimiser.ema else None
    return Learner(model, _optimiser(model, config), position, average)


def streams_of(prepared: Prepared, manifest: Manifest, worker: int, workers: int) -> tuple[TileStream, TileStream]:
    """The tiles that `worker` of `workers` learns from, and those of its part of the validation."""
    config, labels, groups = prepared.config, labels_of(prepared, manifest), None
    if config.data.balance == "response":
        assert prepared.source.responses is not None
        groups = decisions(prepared.source.responses, prepared.response_channels, manifest, config.storage)

    def stream(split: str, cases: frozenset[str] | None) -> TileStream:
        return TileStream(
            manifest=manifest,
            source=prepared.source,
            split=split,
            cases=cases,
            labels=labels,
            views=prepared.views,
            batch_size=config.data.batch_size,
            worker=worker,
            workers=workers,
            read=ShardReader(config.data.read_threads) if config.data.reader == "worker" else read_by_ray_data,
            response_channels=prepared.response_channels,
            map_shape=prepared.map_shape,
            dense_responses=prepared.card.outputs.dense,
            threads=config.data.decode_threads,
            max_corrupt=config.data.max_corrupt,
            buffer_tiles=config.data.shuffle_tiles,
            balance=config.data.balance if groups is None else None,
            groups=groups,
        )

    return stream(config.data.train, prepared.cases), stream(config.data.val, None)


def labels_of(prepared: Prepared, manifest: Manifest) -> np.ndarray | None:
    """Each tile's class, int64 [tiles of the manifest], -1 where there is no label or a run must not see it."""
    config, outputs = prepared.config, prepared.card.outputs
    if outputs.dense:
        return None
    training = manifest.rows_of(config.data.train, prepared.cases)
    labels = manifest.labels_of(outputs, training, needed=prepared.kind != DISTILLING)
    if prepared.labelled is not None:
        seen = manifest.rows_of(config.data.train, prepared.labelled)
        labels[np.setdiff1d(training, seen)] = -1
    return labels


def _optimiser(model: Any, config: RunConfig) -> torch.optim.Optimizer:
    if isinstance(config, FinetuneConfig) and config.layer_decay < 1:
        return make_optimiser(parameters_by_depth(model), config.optimiser, config.layer_decay)
    return make_optimiser([list(model.parameters())], config.optimiser)
