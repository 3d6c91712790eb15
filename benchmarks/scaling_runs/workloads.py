"""The two training workloads, each with tiles, a student and a number of steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.storage.uris import join
from histill.stream.cached_views import CachedViews
from histill.teachers.cache import address, finish_cache
from histill.teachers.classical import ClassicalTeacher
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.tiles.manifest_file import write_manifest
from histill.tiles.schema import MANIFEST
from histill.tiles.shards import Tile, TileShard, content_hash, write_shard
from histill.train.prepare import prepare_run
from histill.train.spec import RunSpec

MPP, PER_GROUP, GROUPS_PER_SHARD = 0.5, 16, 4
DISTINCT = 2 * GROUPS_PER_SHARD * PER_GROUP  # images of 512 px that all tiles are made of
ROWS = 8192  # tiles of an epoch, of which a measurement uses the beginning
_VAL_ROWS = 64
_FED = "fed-"


@dataclass(frozen=True)
class Workload:
    """A run of which some steps in the middle are measured: RCKD pretraining, or training on labels."""

    name: str
    encoder: str
    decoder_channels: tuple[int, ...]
    tile_px: int  # as stored
    student_px: int
    lossless: bool  # PNG; else JPEG of quality 90
    responses: bool  # RCKD on the classical teacher's cached responses; else labels of whole tiles
    batch: int  # tiles per worker and step
    warm: int  # steps before the measured ones
    steps: int  # measured, a multiple of `checkpoint_every`
    checkpoint_every: int  # steps
    decode: Literal["worker", "cluster"] = "worker"  # who reads and decodes

    @property
    def folder(self) -> str:
        """The folder of its tile set, within a bucket."""
        return f"{self.name.removeprefix(_FED)}-tiles"


WORKLOADS = (
    Workload(
        "ingest", "csat_tiny", (16, 16, 8, 8, 8), 1024, 32, True, False, 16, warm=9, steps=12, checkpoint_every=12
    ),
    Workload("compute", "csat", (48, 32, 24, 16, 16), 64, 64, False, True, 24, warm=9, steps=12, checkpoint_every=12),
)
FED = replace(WORKLOADS[0], name=f"{_FED}{WORKLOADS[0].name}", decode="cluster")
"""`ingest` while other nodes decode."""


def shortened(workload: Workload) -> Workload:
    """The workload with the minimum number of steps."""
    return replace(workload, batch=workload.batch // 2, steps=8, checkpoint_every=8)


def prepared_run(workload: Workload, bucket: str, responses: str, workers: int, name: str) -> RunSpec:
    """The run with `workers` workers, with the same batch size per worker for any number."""
    batch = workload.batch * workers
    keys = {
        "name": name,
        "runs": f"s3://{bucket}/runs",
        "data": {
            "tiles": f"s3://{bucket}/{workload.folder}", "batch_size": batch, "shuffle_tiles": 4 * batch,
            "read_threads": 2, "decode_threads": 1, "decode": workload.decode,
        },
        "student": {
            "encoder": workload.encoder, "decoder_channels": workload.decoder_channels, "size_px": workload.student_px,
        },
        "checkpoint_every": workload.checkpoint_every,
        "workers": {"count": workers},
    }  # fmt: skip
    if not workload.responses:
        return prepare_run(validate(FinetuneConfig, keys | {"target": "classification"}, "the benchmark"))
    keys |= {"teacher": {"classical": True}, "responses": responses}
    return prepare_run(validate(PretrainConfig, keys, "the benchmark"))


def write_tiles(
    workload: Workload, pictures: Sequence[np.ndarray], uri: str, storage: Storage, *, per_group: int = PER_GROUP
) -> str:
    """Write the tile set of `workload` to `uri` and beside it the responses, if it needs any; returns their folder.

    `pictures` (uint8 [side, side, 3]) are cut to the tiles' side, or tiled. The manifest has ROWS rows over the
    bytes of these few tiles, a multiple of `per_group`: a server reads them from memory anyway, and a worker's work
    does not depend on it.
    """
    images = [_encoded(picture, workload.lossless) for picture in _sized(pictures, workload.tile_px)]
    per_shard = per_group * GROUPS_PER_SHARD
    shards = []
    for first in range(0, len(images), per_shard):
        part = images[first : first + per_shard]
        tiles = [Tile(str(first + number), "s", "c", 0, 0, MPP, None, image, None) for number, image in enumerate(part)]
        shards.append(TileShard(f"shards/{first:06d}.parquet", first, len(tiles)))
        write_shard(join(uri, shards[-1].shard), tiles, per_group, storage)
    table = _rows(workload.tile_px, [shard.shard for shard in shards], images, per_shard, per_group)
    manifest = write_manifest(uri, table, tile_px=workload.tile_px, mpp=MPP, ingest="generator", storage=storage)
    teacher = ClassicalTeacher(MPP)
    responses = join(f"{uri}-responses", address(teacher.digest, manifest.header.digest))
    keys = {"tiles": uri, "teacher": {"classical": True}, "output": f"{uri}-responses", "storage": storage.model_dump()}
    if not workload.responses:
        return responses
    job = ResponseJob(validate(CacheConfig, keys, "the benchmark"), CachedViews(responses, teacher.outputs))
    for shard in shards:
        write_shard_responses(teacher, manifest, shard, job)
    finish_cache(job, teacher, manifest, undecodable=0)
    return responses


def _rows(tile_px: int, shards: Sequence[str], images: Sequence[bytes], per_shard: int, per_group: int) -> pa.Table:
    """The manifest's rows, repeating the `images` of the shards."""
    number = np.arange(ROWS + _VAL_ROWS)
    place = number % len(images)
    constant = {
        "slide": "s", "case": "c", "x": 0, "y": 0, "mpp": MPP, "size_px": tile_px, "has_mask": False,
    }  # fmt: skip
    columns = {
        "tile_id": pa.array(number.astype(str)),
        "label": pa.array(np.where(number % 2, "odd", "even")),
        "split": pa.array(np.where(number < ROWS, "train", "val")),
        "shard": pa.array(shards).take(pa.array(place // per_shard)),
        "row_group": place % per_shard // per_group,
        "row": place % per_group,
        "content": pa.array([content_hash(image, None) for image in images]).take(pa.array(place)),
    } | {name: pa.repeat(pa.scalar(value, MANIFEST.field(name).type), len(number)) for name, value in constant.items()}
    return pa.table(columns).select(MANIFEST.names).cast(MANIFEST)


def _sized(pictures: Sequence[np.ndarray], side: int) -> list[np.ndarray]:
    """Each picture cut to `side`; if that exceeds their size, squares composed of several pictures."""
    across = -(-side // len(pictures[0]))
    found = []
    for first in range(0, len(pictures) - across**2 + 1, across**2):
        rows = [np.hstack(pictures[at : at + across]) for at in range(first, first + across**2, across)]
        found.append(np.vstack(rows)[:side, :side])
    return found


def _encoded(picture: np.ndarray, lossless: bool) -> bytes:
    import cv2
    import simplejpeg

    if lossless:
        return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1])
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=90, colorsubsampling="420"))
