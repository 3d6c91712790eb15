"""Embed tiles of a set, in this process or as tasks on the cluster."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from histill.artifacts.model_folder import ModelCard
from histill.cluster.connect import connect_cluster
from histill.cluster.metrics import Job, name_job
from histill.cluster.parallel import map_tasks
from histill.cluster.sharded import run_sharded
from histill.config.common import Storage, Workers
from histill.config.encoder import EncoderFacts
from histill.evaluate.evaluator import PARTS_PER_WORKER, split_by_row_group
from histill.evaluate.representation.subject import load_subject
from histill.models.encoders import embed
from histill.models.transfer import Model
from histill.stream.color import stain_densities
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest


@dataclass(frozen=True)
class EmbeddedTiles:
    """The embeddings of N decodable tiles, in manifest order."""

    rows: np.ndarray  # int64 [N], manifest rows
    values: np.ndarray  # float32 [N, D]
    stains: np.ndarray  # float32 [N, 2], mean density of hematoxylin and eosin
    corrupt: int  # undecodable tiles

    @classmethod
    def joined(cls, parts: Sequence["EmbeddedTiles"]) -> "EmbeddedTiles":
        """Concatenate one or more parts, given in any order."""
        order = np.argsort(np.concatenate([part.rows for part in parts]))
        rows, values, stains = (
            np.concatenate([getattr(part, name) for part in parts])[order] for name in ("rows", "values", "stains")
        )
        return cls(rows, values, stains, sum(part.corrupt for part in parts))


@dataclass(frozen=True)
class Embedder:
    """A model and a tile set to embed. Small, because it is sent to tasks."""

    model: str
    tiles: str
    batch_size: int
    max_corrupt: int
    storage: Storage
    encoder: EncoderFacts = field(default_factory=EncoderFacts)  # how the model is read if it is a timm folder

    def embed_tiles(
        self, network: Model, card: ModelCard, manifest: Manifest, rows: np.ndarray, workers: Workers | None
    ) -> EmbeddedTiles:
        """Embed the tiles at manifest `rows` (int64, ascending), each once.

        Runs `network` on its own device, or with `workers` tasks that load model and manifest themselves.
        """
        collect = partial(
            run_sharded,
            expected=len(rows),
            title="embedding",
            unit="tiles",
            count=lambda part: len(part.rows) + part.corrupt,
        )
        if workers is None or workers.in_process:
            return EmbeddedTiles.joined(collect(self._embed(network, card, manifest, rows)))
        pieces = split_by_row_group(manifest, rows, PARTS_PER_WORKER * workers.count)
        work = partial(self._embed_piece, workers.gpus > 0)
        with connect_cluster(), name_job(Job("score_model", self.model)):
            return EmbeddedTiles.joined(collect(map_tasks(work, pieces, cpus=workers.cpus, gpus=workers.gpus)))

    def _embed_piece(self, gpu: bool, rows: np.ndarray) -> EmbeddedTiles:
        manifest = read_manifest(self.tiles, self.storage)
        network, card, _ = load_subject(self.model, self.encoder, manifest.header, self.tiles, self.storage)
        return EmbeddedTiles.joined(list(self._embed(network.to("cuda" if gpu else "cpu"), card, manifest, rows)))

    @torch.inference_mode()
    def _embed(self, network: Model, card: ModelCard, manifest: Manifest, rows: np.ndarray) -> Iterator[EmbeddedTiles]:
        device = next(network.parameters()).device
        stream = TileStream(
            manifest=manifest,
            source=TileSource(manifest.uri, manifest.header.digest, self.storage),
            split="",
            only=rows,
            views=Views(card.size_px),
            batch_size=self.batch_size,
            worker=0,
            workers=1,
            max_corrupt=self.max_corrupt,
        )
        for batch in stream.exact_pass(padded=False):
            valid = batch.valid
            yield EmbeddedTiles(
                rows=batch.index[valid].numpy(),
                values=embed(network, batch.student.to(device).float()).cpu()[valid].numpy(),
                stains=stain_densities(batch.student[valid].numpy()),
                corrupt=int((~valid).sum()),
            )
