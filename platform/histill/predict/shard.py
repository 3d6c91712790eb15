"""Write the predictions for each shard of tiles as one file."""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from histill.artifacts.model_folder import load
from histill.cluster.sharded import check_unchanged
from histill.config.predict_tiles import PredictConfig
from histill.models.resample import resize_logits
from histill.storage.tables import read_columns, write_table
from histill.storage.uris import folder_name, join
from histill.stream.read import ShardReader
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import stream_shard
from histill.tiles.manifest import read_manifest
from histill.tiles.shards import TileShard, shards_of
from histill.tiles.tally import measure_areas, tally_tiles

PLACE = ("tile_id", "slide", "case", "x", "y")
FOREGROUND = 0.01  # share of a segmenter's tile: with less of all classes together, the tile is background


def prediction_schema(masks: bool) -> pa.Schema:
    """The schema of a prediction file; undecodable tiles have only the PLACE columns."""
    strings = [pa.field(name, pa.string(), nullable=False) for name in PLACE[:3]]
    numbers = [pa.field(name, pa.int32(), nullable=False) for name in PLACE[3:]]
    said = [
        # the most probable; multiple labels joined by |; for a segmenter the most frequent foreground class
        pa.field("class", pa.string()),
        pa.field("probabilities", pa.list_(pa.float32())),  # per class; for a segmenter its share of the pixels
    ]
    return pa.schema([*strings, *numbers, *said, *([pa.field("mask", pa.binary())] if masks else [])])


@dataclass(frozen=True)
class PredictionJob:
    """The inputs of an actor. Small, because it is sent to every one."""

    config: PredictConfig
    model: str  # a model folder that every node can read
    tiles: str  # the tile set
    uri: str  # folder of the predictions
    model_digest: str  # digests that the folder was named by
    tiles_digest: str


class PredictionWorker:
    """An actor that holds the network and writes the predictions shard by shard."""

    def __init__(self, job: PredictionJob) -> None:
        config = job.config
        self._job, self._read = job, ShardReader()
        self._manifest = read_manifest(job.tiles, config.storage)
        network, self._card, digest = load(job.model, config.storage)
        check_unchanged(job.model, job.model_digest, digest)
        check_unchanged(job.tiles, job.tiles_digest, self._manifest.header.digest)
        gpu = config.workers.gpus > 0
        if not gpu:
            torch.set_num_threads(max(1, int(config.workers.cpus)))
        self._device = torch.device("cuda" if gpu else "cpu")
        self._network = network.to(self._device)
        self._shards = {shard.shard: shard for shard in shards_of(self._manifest)}

    def __call__(self, name: str) -> list[dict[str, Any]]:
        """Write the predictions for a shard, unless an earlier run has; return its slides' tallies as plain values."""
        shard, folder = self._shards[name], folder_name(self._job.uri)
        target, rows = join(self._job.uri, name), self._rows(shard)
        found = self._earlier(target, rows)
        if found is None:
            found, storage = self._predict(shard, rows), self._job.config.storage
            write_table(target, [found], found.schema, storage, compression="zstd", belongs_to=folder)
        tallies = tally_tiles(found, measure_areas(self._manifest, rows), len(self._card.outputs.scored))
        return [asdict(tally) for tally in tallies]

    def _earlier(self, uri: str, rows: np.ndarray) -> pa.Table | None:
        """An earlier run's predictions for these tiles; None if some were undecodable, since they may be repaired."""
        storage, name = self._job.config.storage, folder_name(self._job.uri)
        found = read_columns(uri, ["tile_id", "slide", "class", "probabilities"], storage, belongs_to=name)
        if found is None or found["class"].null_count:
            return None
        return found if found["tile_id"].equals(self._manifest.table["tile_id"].take(pa.array(rows))) else None

    def _rows(self, shard: TileShard) -> np.ndarray:
        """The manifest rows of the shard's tiles in the chosen split."""
        rows = np.arange(shard.first, shard.first + shard.tiles)
        split = self._job.config.split
        if split is None:
            return rows
        return rows[self._manifest.table["split"].take(pa.array(rows)).to_numpy(zero_copy_only=False) == split]

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
        said: dict[int, tuple[str, np.ndarray, bytes | None]] = {}
        with torch.inference_mode():
            for batch in batches:
                said |= dict(self._said(batch))
        table = self._manifest.table.select(PLACE).take(pa.array(rows)).to_pydict()
        nothing = (None, None, None)
        answers = [said.get(row, nothing) for row in rows.tolist()]
        columns = table | {"class": [name for name, *_ in answers], "probabilities": [each for _, each, _ in answers]}
        if config.masks:
            columns["mask"] = [mask for *_, mask in answers]
        return pa.Table.from_pydict(columns, schema=prediction_schema(config.masks))

    def _said(self, batch: TileBatch) -> Iterator[tuple[int, tuple[str, np.ndarray, bytes | None]]]:
        """Yield row, class, probabilities and mask of each decodable tile of the batch."""
        outputs = self._card.outputs
        logits = self._network(batch.student.to(self._device).float()).float()
        masks: list[bytes | None] = [None] * len(logits)
        if outputs.dense:
            pixels = outputs.decide(resize_logits(logits, self._card.tile_px))
            probabilities = torch.nn.functional.one_hot(pixels, len(outputs.scored)).float().mean((1, 2)).cpu().numpy()
            if self._job.config.masks:
                masks = [_png(each) for each in pixels.to(torch.uint8).cpu().numpy()]
        else:
            probabilities = outputs.probabilities(logits).cpu().numpy()
        for slot in torch.nonzero(batch.valid).flatten().tolist():
            shares = probabilities[slot]
            if outputs.multi_label:
                decision = shares > 0.5
            elif outputs.dense:
                decision = 1 + shares[1:].argmax() if shares[1:].sum() >= FOREGROUND else 0
            else:
                decision = shares.argmax()
            yield int(batch.index[slot]), ("|".join(outputs.names(decision)), shares, masks[slot])


def _png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()
