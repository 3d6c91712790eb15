"""Write a teacher's responses to one tile shard, as a response shard with the same rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import torch

from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.tables import read_columns, write_table
from histill.storage.uris import join
from histill.stream.cached_views import CachedViews
from histill.stream.read import ShardReader
from histill.stream.responses import encode_embedding, encode_logits, encode_map, response_columns, response_schema
from histill.stream.tile_stream import stream_shard
from histill.stream.views import crop_and_orient
from histill.teachers.slide_features import SlideFeatures
from histill.teachers.teacher import Teacher
from histill.tiles.manifest import Manifest
from histill.tiles.shards import TileShard


@dataclass(frozen=True)
class ResponseJob:
    """The tiles to respond to, and where to write. Small, because it is sent to every actor."""

    config: CacheConfig
    cached: CachedViews


def write_shard_responses(
    teacher: Teacher, manifest: Manifest, shard: TileShard, job: ResponseJob, read: ShardReader | None = None
) -> list[bytes]:
    """Write the responses to `shard`, unless already done; returns those to the first view, b"" for undecodable tiles.

    The response shard is written atomically. One with undecodable tiles is written again, since the tiles may have been
    repaired.

    Raises InputError when the tiles cannot be read or are not the manifest's.
    """
    storage, cached = job.config.storage, job.cached
    earlier = read_first_responses(cached, shard, storage)
    if earlier is not None and all(earlier):
        return earlier
    schema = response_schema(cached.views, job.config.layer is not None)
    if isinstance(teacher, SlideFeatures):
        rows = np.arange(shard.first, shard.first + shard.tiles)
        columns = [_encode(torch.from_numpy(teacher.find_embeddings(manifest, rows)), teacher.outputs)]
    else:
        columns = _answer_shard(teacher, manifest, shard, job, len(schema.names) - 1, read)
    part = manifest.read(["tile_id", "row_group"], np.arange(shard.first, shard.first + shard.tiles))
    table = pa.table([part["tile_id"], *map(pa.array, columns)], schema=schema)
    write_table(join(cached.uri, shard.shard), _row_groups(table, part), schema, storage, belongs_to=cached.name)
    return columns[0]


def _answer_shard(
    teacher: Teacher, manifest: Manifest, shard: TileShard, job: ResponseJob, columns: int, read: ShardReader | None
) -> list[list[bytes]]:
    """The encoded responses to the tiles of `shard`, b"" for undecodable ones: a list for each of `columns`."""
    rows = np.arange(shard.first, shard.first + shard.tiles)
    found = [[b""] * len(rows) for _ in range(columns)]
    batches = stream_shard(
        manifest,
        shard,
        job.config.storage,
        rows=rows,
        side_px=manifest.header.tile_px,
        batch_size=job.config.batch_size,
        read=read,
    )
    for batch in batches:
        valid = torch.nonzero(batch.valid).flatten()
        if not len(valid):
            continue
        tiles = batch.student if len(valid) == len(batch.valid) else batch.student[valid]
        index = batch.index[valid].numpy()
        for column, responses in zip(found, _respond(teacher, tiles, index, job, manifest), strict=True):
            for row, response in zip(index, responses, strict=True):
                column[row - shard.first] = response
    return found


def _row_groups(table: pa.Table, part: pa.Table) -> Iterator[pa.Table]:
    """Split `table` at the row groups of its tiles, the manifest rows `part`."""
    groups = part["row_group"].to_numpy()
    for start, end in pairwise([0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]):
        yield table.slice(start, end - start)


def _respond(
    teacher: Teacher, tiles: torch.Tensor, index: np.ndarray, job: ResponseJob, manifest: Manifest
) -> Iterator[Sequence[bytes]]:
    """Yield the encoded responses to each view of `tiles`, uint8 [B, 3, S, S]; with a layer, then the feature maps."""
    cached, layer = job.cached, job.config.layer
    images = tiles.permute(0, 2, 3, 1).numpy()
    maps: list[list[bytes]] = []
    for view in range(cached.views):
        places = cached.placements(view, index, manifest.header.tile_px)
        seen = np.stack([crop_and_orient(image, place) for image, place in zip(images, places, strict=True)])
        shown = torch.from_numpy(seen).permute(0, 3, 1, 2)
        if layer is None:
            logits = teacher.respond(shown)
        else:
            assert teacher.features is not None
            logits, by_layer = teacher.features.respond_with_maps(shown, (layer,))
            maps.append([encode_map(each) for each in by_layer[layer].cpu().numpy()])
        yield _encode(logits, teacher.outputs)
    yield from maps


def _encode(responses: torch.Tensor, outputs: OutputSpec) -> list[bytes]:
    """Logits, float [B, K, S, S] or [B, K], or embeddings, [B, D], as they are stored.

    Raises InputError for an embedding that float16 cannot hold.
    """
    if outputs.kind == "encoder":
        try:
            return [encode_embedding(each) for each in responses.float().cpu().numpy()]
        except ValueError:
            raise InputError(
                "the teacher answers a tile with an embedding that is nan or beyond 65504, the most of float16; check "
                "its weights, or set teacher.encoder.precision=fp32.",
                code="output-not-finite",
            ) from None
    logits = responses if outputs.dense else responses[:, :, None, None]
    return [encode_logits(each) for each in outputs.pack(logits).cpu().numpy()]


def read_first_responses(cached: CachedViews, shard: TileShard, storage: Storage) -> list[bytes] | None:
    """Read the responses to the first view of `shard`; None when they are missing, damaged or to other tiles."""
    column = response_columns(cached.views)[0]
    found = read_columns(join(cached.uri, shard.shard), [column, "tile_id"], storage, belongs_to=cached.name)
    if found is None or (shard.expected is not None and found["tile_id"].to_pylist() != shard.expected.lists()[0]):
        return None
    responses: list[bytes] = found[column].to_pylist()
    return responses
