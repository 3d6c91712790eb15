"""The response cache: a teacher's responses to a whole tile set, written once and read by every later run and trial.

The folder name is a hash of everything that determines the responses: the digests of teacher and manifest, the views
and the layer. Shards mirror the tile shards row for row, so that no join is needed. Each shard is written atomically,
so a repeated run only adds missing ones. A stored logit within +-10 is off by at most 0.039 (stream/responses.py).
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from histill.artifacts.check_places import RESPONSES_NAME, no_responses
from histill.artifacts.lineage import recall_licenses
from histill.artifacts.model_folder import TaughtBy
from histill.cluster.connect import connect_cluster
from histill.cluster.metrics import Job, name_job
from histill.cluster.parallel import map_actors
from histill.cluster.sharded import ShardedFolder, name_by_content
from histill.config.augment import Augment
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.records import Record, read_record, write_record
from histill.storage.uris import folder_name, join
from histill.stream.cached_views import CachedViews, check_crop
from histill.stream.responses import ZERO, decode_levels
from histill.stream.views import UPRIGHT
from histill.teachers.embedding_statistics import measure_embeddings
from histill.teachers.response_worker import ResponseWorker
from histill.teachers.shard_responses import ResponseJob, read_first_responses
from histill.teachers.shares import SHARES_NAME, Shares, group_by, read_shares
from histill.teachers.slide_features import SlideFeatures
from histill.teachers.teacher import Teacher, find_licensed, load_teacher
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest
from histill.tiles.shards import shards_of
from histill.tiles.tally import join_tallies, tally_shards

HEADER_NAME = RESPONSES_NAME


class CacheHeader(Record):
    """The content of a response cache."""

    noun: ClassVar[str] = "a header"
    remedy: ClassVar[str] = "cache the responses again"

    teacher: str
    classes: tuple[str, ...]
    tiles_digest: str
    tiles: int
    undecodable: int
    views: int = 1
    seed: int = 0
    flips: bool = False
    crop_px: int | None = None
    dense: bool = True  # a response to every pixel; else one to the whole tile or window
    multi_label: bool = False  # whether classes have independent logits
    layer: str | None = None  # the teacher's layer whose feature map is stored with each response
    map_shape: tuple[int, int, int] | None = None  # of that map, [C, h, w]
    width: int | None = None  # of the embeddings of a teacher of kind encoder; None: classes are predicted
    mean: tuple[float, ...] | None = None  # [width], of a sample of the embeddings
    scale: float | None = None  # factor that brings the centered sample to a mean variance of 1 over its dimensions
    shard_bytes: int | None = None  # total of all shards, to detect missing ones
    taught_by: tuple[TaughtBy, ...] | None = None  # what a student inherits the licenses of; None: not on record

    @property
    def outputs(self) -> OutputSpec:
        """The outputs that the responses stand for."""
        if self.width is not None:
            return OutputSpec("encoder", width=self.width)
        return OutputSpec("segmentation" if self.dense else "classification", self.classes, self.multi_label)

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the responses; fields that older headers lack are left out when null."""
        absent = {name for name in ("width", "mean", "scale") if getattr(self, name) is None}
        return hashlib.sha256(self.model_dump_json(exclude={*absent, "taught_by"}).encode()).hexdigest()

    @property
    def layers(self) -> dict[str, int]:
        """Channels of the stored feature map, by its layer."""
        return {} if self.layer is None or self.map_shape is None else {self.layer: self.map_shape[0]}

    def at(self, uri: str) -> CachedViews:
        """The cached views of the cache at `uri`."""
        augment = Augment(flips=self.flips, crop_px=self.crop_px)
        return CachedViews(uri, self.outputs, self.views, self.seed, augment, self.map_shape)


@dataclass(frozen=True)
class CachedResponses:
    """A finished cache."""

    uri: str
    header: CacheHeader
    shares: Shares  # of the classes in each slide
    reused: bool


def address(
    teacher_digest: str,
    tiles_digest: str,
    views: int = 1,
    seed: int = 0,
    augment: Augment = UPRIGHT,
    layer: str | None = None,
) -> str:
    """The cache's folder name: 16 hex digits, a hash of teacher, tiles, views and layer."""
    geometry = "upright" if views == 1 else f"{views}:{seed}:{augment.flips}:{augment.crop_px}"
    geometry += "" if layer is None else f":{layer}"
    return name_by_content(teacher_digest, tiles_digest, geometry)


def read_header(uri: str, storage: Storage) -> CacheHeader:
    """Read the header of a finished cache. Raises InputError when it is missing."""
    try:
        return read_record(CacheHeader, join(uri, HEADER_NAME), storage)
    except FileNotFoundError:
        raise no_responses(uri) from None


def cache_responses(config: CacheConfig) -> CachedResponses:
    """Write the responses of `config.teacher` to every tile of the set, or reuse finished ones.

    Missing or damaged shards of an existing cache are written again, and undecodable tiles are retried.

    Raises InputError for a missing tile set, an unusable teacher or window, or an unreadable shard.
    """
    manifest = read_manifest(config.tiles, config.storage)
    tiles = manifest.header
    teacher = load_teacher(config.teacher, tiles.mpp, config.storage)
    check_crop(config.augment, tiles.tile_px)
    if isinstance(teacher, SlideFeatures) and config.views > 1:
        raise InputError(
            f"features {teacher.folder} are of whole upright tiles, and views is {config.views}; leave views, "
            "augment.flips and augment.crop_px out.",
            code="option-not-applicable",
        )
    teacher.sees(config.augment.crop_px or tiles.tile_px)
    _map_shape(teacher, config, tiles.tile_px)  # refuses an unknown layer
    name = address(teacher.digest, tiles.digest, config.views, config.seed, config.augment, config.layer)
    uri = join(config.output, name)
    if (finished := _find_finished(uri, manifest, config.storage)) is not None:
        header, shares = finished
        return CachedResponses(uri, _renew_licenses(uri, header, config, teacher), shares, reused=True)
    job = ResponseJob(config, CachedViews(uri, teacher.outputs, config.views, config.seed, config.augment))
    worker = (job, tiles.digest, teacher.digest)
    with connect_cluster(in_process=config.workers.in_process), name_job(Job("cache_responses", config.output)):
        shards = map_actors(ResponseWorker, worker, manifest.shards(), config.workers)
        tallies = tuple(join_tallies(tally_shards(shards, tiles.tiles, "teacher responses")).values())
    shares = Shares(
        of=group_by(manifest),
        classes=teacher.outputs.classes,
        dense=teacher.outputs.dense,
        mpp=tiles.mpp,
        tallies=tallies,
    )
    write_record(shares, join(uri, SHARES_NAME), config.storage)
    header = finish_cache(job, teacher, manifest, sum(each.undecodable for each in tallies))
    return CachedResponses(uri, header, shares, reused=False)


def finish_cache(job: ResponseJob, teacher: Teacher, manifest: Manifest, undecodable: int) -> CacheHeader:
    """Write the header of a cache whose shards are complete; `undecodable` of its rows are empty."""
    mean = scale = None
    if teacher.outputs.kind == "encoder":
        center, scale = measure_embeddings(job.cached, manifest, job.config.storage)
        mean = tuple(center.tolist())
    header = CacheHeader(
        teacher=teacher.digest,
        classes=teacher.outputs.classes,
        tiles_digest=manifest.header.digest,
        tiles=manifest.header.tiles,
        undecodable=undecodable,
        views=job.cached.views,
        seed=job.cached.seed,
        flips=job.cached.augment.flips,
        crop_px=job.cached.augment.crop_px,
        dense=teacher.outputs.dense,
        multi_label=teacher.outputs.multi_label,
        layer=job.config.layer,
        map_shape=_map_shape(teacher, job.config, manifest.header.tile_px),
        width=teacher.outputs.width,
        mean=mean,
        scale=scale,
        taught_by=find_licensed(job.config.teacher, teacher, job.config.storage),
    )
    folder = _folder(job.cached.uri, job.config.storage)
    return folder.finish(header, manifest.shards(), index_as=job.cached.name)


def _find_finished(uri: str, manifest: Manifest, storage: Storage) -> tuple[CacheHeader, Shares] | None:
    """Header and shares of a complete cache; None when anything has to be written."""
    folder = _folder(uri, storage)
    found = folder.read_header(lambda: (read_header(uri, storage), read_shares(uri, storage)))
    if found is None:
        return None
    header, shares = found
    whole = folder.is_whole(manifest.shards(), header.shard_bytes, index_as=folder_name(uri))
    if not whole or header.undecodable or shares is None:
        return None
    return header, shares


def _renew_licenses(uri: str, header: CacheHeader, config: CacheConfig, teacher: Teacher) -> CacheHeader:
    """The header of a finished cache with the licenses as they are now on record; what was known is not forgotten."""
    taught_by = recall_licenses(find_licensed(config.teacher, teacher, config.storage), header.taught_by or ())
    if taught_by == header.taught_by:
        return header
    header = header.model_copy(update={"taught_by": taught_by})
    write_record(header, join(uri, HEADER_NAME), config.storage)
    return header


def _folder(uri: str, storage: Storage) -> ShardedFolder:
    return ShardedFolder(uri, HEADER_NAME, storage)


def _map_shape(teacher: Teacher, config: CacheConfig, tile_px: int) -> tuple[int, int, int] | None:
    """The shape of the stored feature maps. Raises InputError when the teacher has no such layer."""
    if config.layer is None:
        return None
    if teacher.features is None:
        raise InputError(
            f"layer is {config.layer!r}, and only a network of torch has layers; set teacher.model or teacher.encoder, "
            "or leave it out.",
            code="option-not-applicable",
        )
    return teacher.features.map_shape(config.layer, config.augment.crop_px or tile_px)


def check_cache(uri: str, header: CacheHeader, manifest: Manifest, teacher: Teacher) -> None:
    """Raise InputError unless the cache at `uri` holds the responses of `teacher` to the tiles of `manifest`."""
    check_tiles(uri, header, manifest)
    if header.teacher != teacher.digest:
        raise InputError(
            f"responses {uri} come from another teacher than the configured one; cache this one's instead.",
            code="responses-of-other-teacher",
        )


def check_tiles(uri: str, header: CacheHeader, manifest: Manifest) -> None:
    """Raise InputError unless the cache at `uri` is of the tiles of `manifest`."""
    if header.tiles_digest != manifest.header.digest:
        raise InputError(
            f"responses {uri} are to another tile set than {manifest.uri}; cache them again with histill cache.",
            code="responses-of-other-tiles",
        )


def decisions(cached: CachedViews, manifest: Manifest, storage: Storage) -> np.ndarray:
    """The most probable class of every tile according to the cached responses, int64 [tiles]; 0 if undecodable.

    Raises InputError when a shard of responses is missing.
    """
    found, channels = [], cached.outputs.packed_channels
    for shard in shards_of(manifest):
        responses = read_first_responses(cached, shard, storage)
        if responses is None:
            uri = join(cached.uri, shard.shard)
            raise InputError(
                f"responses {uri} are missing, damaged or to other tiles; delete the file if it exists and cache the "
                "responses again.",
                code="responses-missing",
            )
        for response in responses:
            levels = decode_levels(response, channels, 1).flatten() if response else np.zeros(channels, np.uint8)
            found.append(int(np.argmax([ZERO, *levels])))
    return np.array(found, np.int64)


def check_views(uri: str, header: CacheHeader, augment: Augment) -> None:
    """Raise InputError when a run with the augmentation `augment` cannot reproduce the cached views.

    Cached windows lie on a grid that is whole pixels for every student; `check_window` checks their side.
    """
    if augment.shared_colors and augment.colors:
        raise InputError(
            f"data.augment.shared_colors colors the teacher's view, and responses {uri} are to uncolored tiles; "
            "leave it out, or run the teacher live (responses=null).",
            code="responses-of-other-views",
        )
    if header.views > 1 and augment.crop_px != header.crop_px:
        shown, answered = (side or "null (whole tiles)" for side in (augment.crop_px, header.crop_px))
        raise InputError(
            f"data.augment.crop_px is {shown}, and responses {uri} are to views of crop_px {answered}; set it to that, "
            "or cache responses to other views.",
            code="responses-of-other-views",
        )
    if header.views == 1 and not header.outputs.dense and augment.crop_px is not None:
        raise InputError(
            f"data.augment.crop_px is {augment.crop_px}, and responses {uri} are to whole tiles, not parts of them; "
            f"leave it out, or cache responses to views of that size (views=8 augment.crop_px={augment.crop_px}).",
            code="responses-of-other-views",
        )
