"""Write the predictions for each shard of tiles as one file."""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from histill.artifacts.model_folder import ModelCard, load
from histill.cluster.sharded import check_unchanged
from histill.cluster.threads import count_cpus
from histill.config.ingest_tiles import SlideSource
from histill.config.predict_tiles import PredictConfig
from histill.engines.engine import Choice, Engine
from histill.engines.loaded_model import LoadedModel
from histill.engines.start import Work, start_engine
from histill.errors import InputError
from histill.models.encoders import answer_and_embed
from histill.models.resample import resize_logits
from histill.storage.tables import read_columns, write_table
from histill.storage.uris import folder_name, join
from histill.stream.cut_tiles import TileCutter
from histill.stream.read import ShardReader
from histill.stream.responses import encode_logits
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import Read, stream_shard
from histill.tiles.manifest_file import read_manifest
from histill.tiles.shards import TileShard, shards_of
from histill.tiles.tally import SlideTally, measure_areas, tally_tiles

Column = Sequence[Any] | np.ndarray
PLACE = ("tile_id", "slide", "case", "x", "y")
ABOUT = b"histill.predictions"  # key of the file's metadata: JSON of what is needed to read the columns
_WITH_EMBEDDINGS = Choice("torch", "torch, which gives embeddings beside the classes")
FOREGROUND = 0.01  # share of a segmenter's tile: with less of all classes together, the tile is background


def prediction_schema(*, masks: bool = False, embeddings: bool = False, logits: bool = False) -> pa.Schema:
    """The schema of a prediction file; undecodable tiles have only the PLACE columns."""
    strings = [pa.field(name, pa.string(), nullable=False) for name in PLACE[:3]]
    numbers = [pa.field(name, pa.int32(), nullable=False) for name in PLACE[3:]]
    said = [
        # the most probable; multiple labels joined by |; for a segmenter the most frequent foreground class; "" for an
        # encoder
        pa.field("class", pa.string()),
        pa.field("probabilities", pa.list_(pa.float32())),  # per class; for a segmenter its share of the pixels
    ]
    if masks:
        said.append(pa.field("mask", pa.binary()))
    if logits:  # a segmenter's, at its input size, as `stream.responses` stores them
        said.append(pa.field("logits", pa.binary()))
    if embeddings:  # all of one length, but pyarrow 25 cannot read nulls in fixed-size lists (apache/arrow#35692)
        said.append(pa.field("embedding", pa.list_(pa.float16())))
    return pa.schema([*strings, *numbers, *said])


def describe_columns(card: ModelCard, model_digest: str) -> dict[bytes, bytes]:
    """The metadata of a prediction file: the classes in the order of `probabilities`, and what a tile is."""
    about = {
        "kind": card.kind,
        "classes": card.outputs.scored,
        "multi_label": card.multi_label,
        "tile_px": card.tile_px,
        "tile_mpp": card.tile_mpp,
        "model": model_digest,
    }
    return {ABOUT: json.dumps(about).encode()}


@dataclass(frozen=True)
class PredictionJob:
    """The inputs of an actor. Small, because it is sent to every one."""

    config: PredictConfig
    model: str  # a model folder that every node can read
    tiles: str  # the tile set
    uri: str  # folder of the predictions
    model_digest: str  # digests that the folder was named by
    tiles_digest: str
    tiles_left: int  # that have no predictions yet


def slide_source(config: PredictConfig, card: ModelCard) -> SlideSource:
    """How the slides are cut: like the tiles that the model learned from."""
    source = SlideSource(
        paths=config.slides,
        mpp=card.tile_mpp,
        slide_mpp=config.slide_mpp,
        min_tissue=config.min_tissue,
        overlap_px=config.choose_overlap(card.tile_px),
        icc=card.icc,
    )
    return source.for_prediction(cut=config.keep_tiles, regions=config.regions)


class PredictionWorker:
    """An actor that holds the network and writes the predictions shard by shard."""

    def __init__(self, job: PredictionJob) -> None:
        config = job.config
        self._job = job
        self._manifest = read_manifest(job.tiles, config.storage, cut=False)
        network, self._card, digest = load(job.model, config.storage)
        check_unchanged(job.model, job.model_digest, digest)
        check_unchanged(job.tiles, job.tiles_digest, self._manifest.header.digest)
        gpu = config.workers.gpus > 0
        if not gpu and not config.workers.in_process:  # whose threads are the caller's
            torch.set_num_threads(max(1, int(config.workers.cpus)))
        self._device = torch.device("cuda" if gpu else "cpu")
        self._network = network.to(self._device)
        self._model = LoadedModel(job.model, self._network, self._card, digest, config.storage)
        self._engine: Engine | None = None  # not before there are tiles to try it on
        self._choice: Choice | None = None  # not before a tile was predicted
        self._read: Read = ShardReader()
        if not self._manifest.header.cut:
            threads = count_cpus() if config.workers.in_process else max(1, int(config.workers.cpus))
            self._read = TileCutter(self._manifest, slide_source(config, self._card), config.storage, threads)
        self._shards = {shard.shard: shard for shard in shards_of(self._manifest)}

    def __call__(self, names: str) -> dict[str, Any]:
        """Write the predictions for some shards (see `bundle_shards`), unless an earlier run has.

        Returns their slides' tallies and the choice of the engine, None if it has not run, as plain values.
        """
        tallies = [tally for name in names.split("\n") for tally in self._write(name)]
        engine = None if self._choice is None else asdict(self._choice)
        return {"slides": [asdict(tally) for tally in tallies], "engine": engine}

    def _write(self, name: str) -> list[SlideTally]:
        """The tallies of one shard, whose predictions are there."""
        shard, folder = self._shards[name], folder_name(self._job.uri)
        target, rows = join(self._job.uri, name), self._rows(shard)
        found = self._earlier(target, rows)
        if found is None:
            found, storage = self._predict(shard, rows), self._job.config.storage
            write_table(target, [found], found.schema, storage, compression="zstd", belongs_to=folder)
        once = (1 - self._job.config.choose_overlap(self._card.tile_px) / self._card.tile_px) ** 2  # of a tile's area
        areas = once * measure_areas(self._manifest, rows)
        return tally_tiles(found, areas, len(self._card.outputs.scored))

    def _earlier(self, uri: str, rows: np.ndarray) -> pa.Table | None:
        """An earlier run's predictions for these tiles; None if some were undecodable, since they may be repaired."""
        storage, name = self._job.config.storage, folder_name(self._job.uri)
        found = read_columns(uri, ["tile_id", "slide", "class", "probabilities"], storage, belongs_to=name)
        if found is None or found["class"].null_count:
            return None
        return found if found["tile_id"].equals(self._manifest.read(["tile_id"], rows)["tile_id"]) else None

    def _rows(self, shard: TileShard) -> np.ndarray:
        """The manifest rows of the shard's tiles in the chosen split."""
        rows = np.arange(shard.first, shard.first + shard.tiles)
        split = self._job.config.split
        if split is None:
            return rows
        return rows[self._manifest.column("split", rows) == split]

    def _predict(self, shard: TileShard, rows: np.ndarray) -> pa.Table:
        config, card = self._job.config, self._card
        batches = stream_shard(
            self._manifest,
            shard,
            config.storage,
            rows=rows,
            side_px=card.size_px,
            batch_size=config.batch_size,
            read=self._read,
        )
        said: dict[int, dict[str, Any]] = {}
        with torch.inference_mode():
            for batch in batches:
                said |= dict(self._said(batch))
        about = describe_columns(card, self._job.model_digest)
        schema = prediction_schema(masks=config.masks, embeddings=config.embeddings, logits=config.keeps_logits)
        schema = schema.with_metadata(about)
        columns = self._manifest.read(PLACE, rows).to_pydict()
        for name in schema.names[len(PLACE) :]:
            columns[name] = [said.get(row, {}).get(name) for row in rows.tolist()]
        return pa.Table.from_pydict(columns, schema=schema)

    def _said(self, batch: TileBatch) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield row and columns of each decodable tile of the batch."""
        columns: dict[str, Column] = {}
        if self._card.kind == "encoder":
            columns["embedding"] = self._to_float16(self._run(batch), batch.valid)
            columns |= _no_answers(len(batch.student))
        elif self._job.config.embeddings:
            self._choice = _WITH_EMBEDDINGS
            logits, embeddings = answer_and_embed(self._network, batch.student.to(self._device).float())
            columns["embedding"] = self._to_float16(embeddings, batch.valid)
            assert logits is not None
            columns |= self._answers(logits)
        else:
            columns |= self._answers(self._run(batch))
        for slot in torch.nonzero(batch.valid).flatten().tolist():
            yield int(batch.index[slot]), {name: column[slot] for name, column in columns.items()}

    def _run(self, batch: TileBatch) -> torch.Tensor:
        """The logits of a batch by the engine, which its first tiles are tried on."""
        if self._engine is None:
            config, workers = self._job.config, max(1, self._job.config.workers.count)
            work = Work(-(-self._job.tiles_left // workers), config.batch_size, torch.get_num_threads(), self._device)
            self._engine = start_engine(config.engine, self._model, batch.student, work)
            self._choice = self._engine.choice
        return self._engine(batch.student)

    def _to_float16(self, embeddings: torch.Tensor, valid: torch.Tensor) -> np.ndarray:
        halves = embeddings.half().cpu()
        if not halves[valid].isfinite().all():
            raise InputError(
                f"model {self._job.model} has an embedding that is nan, infinite or beyond +-65504, which float16 "
                "cannot hold; leave embeddings out, or train it again.",
                code="output-not-finite",
            )
        return halves.numpy()

    def _answers(self, logits: torch.Tensor) -> dict[str, Column]:
        """The columns for the logits of a batch."""
        outputs = self._card.outputs
        columns: dict[str, Column] = {}
        if outputs.dense:
            pixels = outputs.decide(resize_logits(logits, self._card.tile_px))
            shares = torch.nn.functional.one_hot(pixels, len(outputs.scored)).float().mean((1, 2)).cpu().numpy()
            decisions = np.where(shares[:, 1:].sum(1) >= FOREGROUND, 1 + shares[:, 1:].argmax(1), 0)
            if self._job.config.masks:
                columns["mask"] = [_png(each) for each in pixels.to(torch.uint8).cpu().numpy()]
            if self._job.config.keeps_logits:
                columns["logits"] = [encode_logits(each) for each in outputs.pack(logits).cpu().numpy()]
        else:
            shares = outputs.probabilities(logits).cpu().numpy()
            decisions = shares > 0.5 if outputs.multi_label else shares.argmax(1)
        columns |= {"class": ["|".join(outputs.names(each)) for each in decisions], "probabilities": shares}
        return columns


def _no_answers(tiles: int) -> dict[str, Column]:
    """The columns for an encoder, which has no classes."""
    return {"class": [""] * tiles, "probabilities": [[]] * tiles}


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()
