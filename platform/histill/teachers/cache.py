"""A teacher's responses to a whole tile set, written once and read by every later run and trial.

The cache's address is made of what determines it: the teacher's digest and the manifest's. Shards mirror the tiles'
own, row for row, so that no join is needed; a shard is written whole or not at all, so a repeated run only adds what
is missing.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histill.cluster.connect import connected
from histill.cluster.progress import Progress
from histill.cluster.quiet import ray_data
from histill.config.base import Strict
from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.config.scoring import CacheConfig
from histill.errors import InputError
from histill.storage.control import exists, read_json, write_json
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.uris import is_s3, join
from histill.stream.decode import CorruptTile, decode_image
from histill.stream.responses import RESPONSE, encode
from histill.teachers.teacher import Teacher, load_teacher
from histill.tiles.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    import torch

HEADER_NAME = "responses.json"


class CacheHeader(Strict):
    """What a response cache holds; written last, so a cache without it is not finished."""

    teacher: str
    classes: tuple[str, ...]
    tiles_digest: str
    tiles: int
    undecodable: int


@dataclass(frozen=True)
class CachedResponses:
    """A finished cache."""

    uri: str
    header: CacheHeader
    reused: bool


def address(teacher_digest: str, tiles_digest: str) -> str:
    """The cache's folder name: 16 hex digits that change with one byte of teacher or tiles."""
    return hashlib.sha256(f"{teacher_digest}:{tiles_digest}:upright".encode()).hexdigest()[:16]


def read_header(uri: str, storage: Storage) -> CacheHeader:
    """The header of a finished cache. Raises InputError when it is missing."""
    try:
        data = read_json(join(uri, HEADER_NAME), storage)
    except FileNotFoundError:
        raise InputError(f"{uri} holds no finished responses; make them with jobs/cache_responses.py.") from None
    return CacheHeader.model_validate(data | {"classes": tuple(data["classes"])})


def cache_responses(config: CacheConfig) -> CachedResponses:
    """Write the responses of `config.teacher` to every tile of the set, or find them there.

    Raises InputError for a missing tile set, an unusable teacher, or a shard that cannot be read.
    """
    manifest = read_manifest(config.tiles, config.storage)
    teacher = load_teacher(config.teacher, manifest.header.mpp, config.storage)
    uri = join(config.output, address(teacher.digest, manifest.header.digest))
    if exists(join(uri, HEADER_NAME), config.storage):
        return CachedResponses(uri, read_header(uri, config.storage), reused=True)
    undecodable = 0
    progress = Progress("teacher responses", manifest.header.tiles, "tiles")
    done = 0
    with connected():
        for tiles, failed in _answered_shards(config, manifest, uri):
            done, undecodable = done + tiles, undecodable + failed
            progress.update(done)
    progress.close()
    if done != manifest.header.tiles:
        raise RuntimeError(f"{done} responses were written for {manifest.header.tiles} tiles")
    header = CacheHeader(
        teacher=teacher.digest,
        classes=teacher.classes,
        tiles_digest=manifest.header.digest,
        tiles=done,
        undecodable=undecodable,
    )
    write_json(join(uri, HEADER_NAME), header.model_dump(mode="json"), config.storage)
    return CachedResponses(uri, header, reused=False)


def _answered_shards(config: CacheConfig, manifest: Manifest, uri: str) -> Iterator[tuple[int, int]]:
    """Run the shards through a pool of Ray Data actors; yields (tiles, undecodable) of each shard as it is written."""
    data = ray_data()
    shards = manifest.table["shard"].unique().to_pylist()
    dataset = data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    answered = dataset.map_batches(
        _ShardTeacher,
        fn_constructor_args=(config, uri, manifest.header.mpp, manifest.header.tile_px),
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(min_size=1, max_size=config.workers.count),
        num_cpus=config.workers.cpus,
        num_gpus=config.workers.gpus,
    )
    for row in answered.iter_rows():
        yield row["tiles"], row["undecodable"]


class _ShardTeacher:
    """One actor: holds the teacher, answers shard after shard."""

    def __init__(self, config: CacheConfig, uri: str, mpp: float, tile_px: int) -> None:
        self.config = config
        self.uri = uri
        self.tile_px = tile_px
        self.teacher = on_device(load_teacher(config.teacher, mpp, config.storage), config.workers.gpus > 0)

    def __call__(self, shards: pa.Table) -> pa.Table:
        counts = [self._answer(shard) for shard in shards["shard"].to_pylist()]
        return pa.table({"tiles": [done for done, _ in counts], "undecodable": [failed for _, failed in counts]})

    def _answer(self, shard: str) -> tuple[int, int]:
        target, origin, storage = join(self.uri, shard), join(self.config.tiles, shard), self.config.storage
        if earlier := _counts(target, storage):
            return earlier
        source, source_path = arrow_filesystem(origin, storage)
        try:
            with storage_errors(origin, storage), source.open_input_file(source_path) as file:
                tiles = pq.ParquetFile(file, pre_buffer=True)
                groups = [
                    tiles.read_row_group(index, columns=["tile_id", "image"]) for index in range(tiles.num_row_groups)
                ]
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise InputError(
                f"shard {origin} cannot be read ({str(error).splitlines()[0]}); "
                "it is missing or truncated, so ingest the tiles again."
            ) from None
        answers = [self._responses(group) for group in groups]
        _write_shard(target, answers, storage)
        failed = sum(not response for answer in answers for response in answer["response"].to_pylist())
        return sum(answer.num_rows for answer in answers), failed

    def _responses(self, group: pa.Table) -> pa.Table:
        encoded = group["image"].to_pylist()
        responses: list[bytes] = []
        for start in range(0, len(encoded), self.config.batch_size):
            responses += respond_encoded(self.teacher, encoded[start : start + self.config.batch_size], self.tile_px)
        return pa.table({"tile_id": group["tile_id"], "response": responses}, schema=RESPONSE)


def respond_encoded(teacher: Teacher, images: list[bytes], tile_px: int) -> list[bytes]:
    """The encoded responses to encoded tiles; b"" for a tile that cannot be decoded (the run that reads it decides)."""
    import torch

    decoded: dict[int, np.ndarray] = {}
    for index, data in enumerate(images):
        try:
            decoded[index] = decode_image(data, tile_px)
        except CorruptTile:
            continue
    if not decoded:
        return [b""] * len(images)
    tiles = torch.from_numpy(np.stack(list(decoded.values()))).permute(0, 3, 1, 2)
    logits = relative_logits(teacher.respond(tiles)).cpu().numpy()
    answers = dict(zip(decoded, map(encode, logits), strict=True))
    return [answers.get(index, b"") for index in range(len(images))]


def relative_logits(logits: "torch.Tensor") -> "torch.Tensor":
    """[B, K, H, W] -> [B, K - 1, H, W]: z_k - z_0. A softmax does not see the shift, and a channel is saved."""
    return logits[:, 1:] - logits[:, :1]


def full_logits(relative: "torch.Tensor") -> "torch.Tensor":
    """The inverse, with z_0 = 0: [B, K - 1, H, W] -> [B, K, H, W]."""
    import torch

    return torch.cat([torch.zeros_like(relative[:, :1]), relative], dim=1)


def on_device(teacher: Teacher, gpu: bool) -> Teacher:
    """The teacher, its network moved to the GPU when there is one for it."""
    from histill.teachers.network import NetworkTeacher

    if gpu and isinstance(teacher, NetworkTeacher):
        teacher.model.to("cuda")
    return teacher


def _counts(uri: str, storage: Storage) -> tuple[int, int] | None:
    """(tiles, undecodable) of a shard that an earlier run wrote, None when it did not."""
    filesystem, path = arrow_filesystem(uri, storage)
    try:
        with storage_errors(uri, storage), filesystem.open_input_file(path) as file:
            answers = pq.read_table(file, columns=["response"])["response"]
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    return len(answers), sum(not answer for answer in answers.to_pylist())


def _write_shard(uri: str, groups: list[pa.Table], storage: Storage) -> None:
    import os

    filesystem, path = arrow_filesystem(uri, storage)
    part = path if is_s3(uri) else f"{path}.part"
    if not is_s3(uri):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    with storage_errors(uri, storage):
        with (
            filesystem.open_output_stream(part) as sink,
            pq.ParquetWriter(sink, RESPONSE, compression="none") as writer,
        ):
            for group in groups:
                writer.write_table(group)
        if part != path:
            os.replace(part, path)


def matching_cache(uri: str, manifest: Manifest, config: TeacherConfig, storage: Storage) -> CacheHeader:
    """The header of the cache at `uri`, checked: it must answer these tiles, by this teacher. Raises InputError."""
    header = read_header(uri, storage)
    if header.tiles_digest != manifest.header.digest:
        raise InputError(
            f"responses {uri} answer another tile set than {manifest.uri}; "
            "cache them again with jobs/cache_responses.py."
        )
    teacher = load_teacher(config, manifest.header.mpp, storage)
    if header.teacher != teacher.digest:
        raise InputError(
            f"responses {uri} come from another teacher than the configured one; cache this one's instead."
        )
    return header
