"""The responses to one shard of tiles: read, answered view by view, and written as a shard like it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histill.config.common import Storage
from histill.config.evaluation import CacheConfig
from histill.errors import InputError
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.retry import with_retries
from histill.storage.tables import is_damage, read_columns, write_table
from histill.storage.uris import join
from histill.stream.cached_views import CachedViews
from histill.stream.decode import CorruptTile, decode_image
from histill.stream.responses import encode_logits, encode_map, response_columns, response_schema
from histill.stream.views import Placement, crop_and_orient
from histill.teachers.teacher import Teacher
from histill.tiles.contents import drop_damaged
from histill.tiles.shards import TileShard


@dataclass(frozen=True)
class Answering:
    """What to answer with, apart from the teacher. Small: it is sent to every actor."""

    config: CacheConfig
    cached: CachedViews
    tile_px: int


def answer_shard(teacher: Teacher, shard: TileShard, how: Answering) -> tuple[int, int]:
    """Write the responses to `shard` as `write_answers` does; (tiles, undecodable)."""
    answers = write_answers(teacher, shard, how)
    return answers.num_rows, _undecodable(answers, how.cached.views)


def write_answers(teacher: Teacher, shard: TileShard, how: Answering) -> pa.Table:
    """Write the responses to `shard`, unless an earlier run has; the first view's column is in what is returned.

    It is written whole or not at all. A shard with undecodable tiles is answered again: it may have been mended since.
    Raises InputError when the tiles cannot be read or are others than the manifest's.
    """
    storage, views = how.config.storage, how.cached.views
    earlier = first_responses(how.cached, shard, storage)
    if earlier is not None and not _undecodable(earlier, views):
        return earlier
    groups = _groups(join(how.config.tiles, shard.shard), shard, storage)
    answers, first = [], shard.first
    for group in groups:
        answers.append(_responses(teacher, group, first, how))
        first += group.num_rows
    schema = response_schema(views, how.config.layer is not None)
    write_table(join(how.cached.uri, shard.shard), answers, schema, storage, belongs_to=how.cached.name)
    return pa.concat_tables(answers).select([response_columns(views)[0]])


def _groups(uri: str, tiles: TileShard, storage: Storage) -> list[pa.Table]:
    """The encoded tiles of each row group, without the bytes of those that are damaged."""
    # Another mask makes no other response, but tells as well that the shard is damaged.
    columns = ["tile_id", "image", "mask"]

    def read() -> list[pa.Table]:
        source, path = arrow_filesystem(uri, storage)
        with source.open_input_file(path) as file:
            try:
                shard = pq.ParquetFile(file, pre_buffer=True)
                return [shard.read_row_group(index, columns=columns) for index in range(shard.num_row_groups)]
            except (pa.ArrowInvalid, OSError) as error:
                if not is_damage(error, uri):
                    raise
                raise InputError(
                    f"shard {uri} cannot be read ({str(error).splitlines()[0]}); it is truncated or damaged, so delete "
                    "it and repeat the ingest that made it."
                ) from None

    try:
        with storage_errors(uri, storage):
            groups = with_retries(read, storage, uri=uri)
    except FileNotFoundError:
        raise InputError(f"shard {uri} is missing; repeat the ingest that made it.") from None
    if (rows := sum(group.num_rows for group in groups)) != tiles.tiles:
        raise InputError(
            f"shard {uri} has {rows} tiles and its manifest says {tiles.tiles}; delete it and repeat the ingest that "
            "made it."
        )
    if tiles.expected is None:
        return groups
    firsts = accumulate((group.num_rows for group in groups), initial=0)
    return [
        drop_damaged(group, tiles.expected.part(first, group.num_rows), f"row group {index} of shard {uri}")[0]
        for index, (group, first) in enumerate(zip(groups, firsts, strict=False))
    ]


def _responses(teacher: Teacher, group: pa.Table, first: int, how: Answering) -> pa.Table:
    views = range(how.cached.views)
    rows = np.arange(first, first + group.num_rows)
    places = [how.cached.placements(view, rows, how.tile_px) for view in views]
    encoded = group["image"].to_pylist()
    layer = how.config.layer
    columns: list[list[bytes]] = [[] for _ in range(len(views) * (1 if layer is None else 2))]
    for start in range(0, len(encoded), how.config.batch_size):
        batch = slice(start, start + how.config.batch_size)
        answers = respond_encoded(teacher, encoded[batch], how.tile_px, [seen[batch] for seen in places], layer)
        for column, responses in zip(columns, answers, strict=True):
            column.extend(responses)
    schema = response_schema(how.cached.views, layer is not None)
    return pa.table([group["tile_id"], *map(pa.array, columns)], schema=schema)


def respond_encoded(
    teacher: Teacher,
    images: Sequence[bytes],
    tile_px: int,
    views: Sequence[Sequence[Placement]],
    layer: str | None = None,
) -> list[list[bytes]]:
    """For each of `views`, which say where it lies in every tile, the encoded responses to encoded tiles.

    With a `layer`, which only a teacher with feature maps has, the encoded feature maps of each view follow. A tile is
    decoded once for all views; one that cannot be decoded has b"" in each (the run that reads it decides).
    """
    import torch

    decoded: dict[int, np.ndarray] = {}
    for index, data in enumerate(images):
        try:
            decoded[index] = decode_image(data, tile_px)
        except CorruptTile:
            continue
    columns = [[b""] * len(images) for _ in views]
    maps = [[b""] * len(images) for _ in views] if layer is not None else []
    if not decoded:
        return columns + maps
    for number, places in enumerate(views):
        seen = np.stack([crop_and_orient(image, places[index]) for index, image in decoded.items()])
        tiles = torch.from_numpy(seen).permute(0, 3, 1, 2)
        if layer is None:
            logits = teacher.respond(tiles)
        else:
            assert teacher.features is not None
            logits, by_layer = teacher.features.respond_with_maps(tiles, (layer,))
            for index, feature_map in zip(decoded, by_layer[layer].cpu().numpy(), strict=True):
                maps[number][index] = encode_map(feature_map)
        logits = logits if teacher.outputs.dense else logits[:, :, None, None]
        answers = teacher.outputs.pack(logits).cpu().numpy()
        for index, answer in zip(decoded, answers, strict=True):
            columns[number][index] = encode_logits(answer)
    return columns + maps


def _undecodable(answers: pa.Table, views: int) -> int:
    """They are the same in every view."""
    first = answers[response_columns(views)[0]]
    return sum(not response for response in first.to_pylist())


def first_responses(cached: CachedViews, shard: TileShard, storage: Storage) -> pa.Table | None:
    """The responses to the first view of `shard`; None when there are none, or none that are whole and of its tiles."""
    columns = [response_columns(cached.views)[0], "tile_id"]
    found = read_columns(join(cached.uri, shard.shard), columns, storage, belongs_to=cached.name)
    if found is None or shard.expected is None:
        return found
    return found if found["tile_id"].to_pylist() == shard.expected.lists()[0] else None
