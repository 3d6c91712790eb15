"""A teacher's responses to a whole tile set, written once and read by every later run and trial.

The cache's address is made of what determines it: the teacher's digest, the manifest's, and the views. Shards mirror
the tiles' own, row for row, so that no join is needed; a shard is written whole or not at all, so a repeated run only
adds what is missing. A stored logit within +-10 is off by at most 0.039 (stream/responses.py).
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from histill.cluster.actors import map_actors
from histill.cluster.connect import connect_cluster
from histill.cluster.progress import Progress
from histill.config.augment import Augment
from histill.config.common import Storage
from histill.config.evaluation import CacheConfig
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.control import exists, measure_files
from histill.storage.records import Record, read_record, write_record
from histill.storage.uris import join
from histill.stream.cached_views import CachedViews, check_crop
from histill.stream.responses import ZERO, decode_levels
from histill.stream.views import UPRIGHT
from histill.teachers.answers import Answering, first_responses, write_answers
from histill.teachers.shares import SHARES_NAME, Shares, group_by, read_shares, tally_responses
from histill.teachers.teacher import Teacher, load_teacher
from histill.tiles.manifest import Manifest, read_manifest
from histill.tiles.shards import shards_of
from histill.tiles.tally import SlideTally, join_tallies

HEADER_NAME = "responses.json"
_logger = logging.getLogger(__name__)


class CacheHeader(Record):
    """What a response cache holds; written last, so a cache without it is not finished."""

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
    dense: bool = True  # an answer to every pixel; else one to the whole tile or window
    multi_label: bool = False  # whether an answer is a logit of each class by itself
    layer: str | None = None  # of the teacher, whose feature map lies beside each answer
    map_shape: tuple[int, int, int] | None = None  # of that map, [C, h, w]
    shard_bytes: int | None = None  # of all shards together, by which lost ones are noticed

    @property
    def outputs(self) -> OutputSpec:
        """What the responses are."""
        return OutputSpec("segmentation" if self.dense else "classification", self.classes, self.multi_label)

    @property
    def layers(self) -> dict[str, int]:
        """Channels of the feature map that lies beside each answer, by its layer."""
        return {} if self.layer is None or self.map_shape is None else {self.layer: self.map_shape[0]}

    def at(self, uri: str) -> CachedViews:
        """The views of the cache, which lies at `uri`."""
        return CachedViews(uri, self.views, self.seed, Augment(flips=self.flips, crop_px=self.crop_px))


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
    """The cache's folder name: 16 hex digits that change with one byte of teacher or tiles, views and layer."""
    geometry = "upright" if views == 1 else f"{views}:{seed}:{augment.flips}:{augment.crop_px}"
    geometry += "" if layer is None else f":{layer}"
    return hashlib.sha256(f"{teacher_digest}:{tiles_digest}:{geometry}".encode()).hexdigest()[:16]


def read_header(uri: str, storage: Storage) -> CacheHeader:
    """The header of a finished cache. Raises InputError when it is missing."""
    try:
        return read_record(CacheHeader, join(uri, HEADER_NAME), storage)
    except FileNotFoundError:
        raise InputError(f"{uri} holds no finished responses; make them with jobs/cache_responses.py.") from None


def cache_responses(config: CacheConfig) -> CachedResponses:
    """Write the responses of `config.teacher` to every tile of the set, or find them there.

    What is missing or damaged of those that are there is written again, and what could not be decoded is tried again.

    Raises InputError for a missing tile set, an unusable teacher or window, or a shard that cannot be read.
    """
    manifest = read_manifest(config.tiles, config.storage)
    tiles = manifest.header
    teacher = load_teacher(config.teacher, tiles.mpp, config.storage)
    check_crop(config.augment, tiles.tile_px)
    teacher.sees(config.augment.crop_px or tiles.tile_px)
    _map_shape(teacher, config, tiles.tile_px)  # refuses a layer that is not there
    folder = address(teacher.digest, tiles.digest, config.views, config.seed, config.augment, config.layer)
    uri = join(config.output, folder)
    finished = _finished(uri, manifest, config.storage)
    if finished is not None:
        return CachedResponses(uri, *finished, reused=True)
    how = Answering(config, CachedViews(uri, config.views, config.seed, config.augment), tiles.tile_px)
    done = undecodable = 0
    tallies: list[SlideTally] = []
    progress = Progress("teacher responses", tiles.tiles, "tiles")
    with connect_cluster():
        shards = [{"shard": shard.shard} for shard in shards_of(manifest)]
        for answered in map_actors(shards, _Answerer, (how, tiles.mpp, teacher.digest), config.workers):
            done, undecodable = done + answered["tiles"], undecodable + answered["undecodable"]
            tallies += [SlideTally(**each) for each in json.loads(answered["slides"])]
            progress.update(done)
    progress.close()
    if done != tiles.tiles:
        raise RuntimeError(f"{done} responses were written for {tiles.tiles} tiles")
    joined = tuple(join_tallies(tallies).values())
    shares = Shares(
        of=group_by(manifest),
        classes=teacher.outputs.classes,
        dense=teacher.outputs.dense,
        mpp=tiles.mpp,
        tallies=joined,
    )
    write_record(shares, join(uri, SHARES_NAME), config.storage)
    return CachedResponses(uri, finish_cache(how, teacher, manifest, undecodable), shares, reused=False)


def _finished(uri: str, manifest: Manifest, storage: Storage) -> tuple[CacheHeader, Shares] | None:
    """The header and shares of a cache of which nothing is missing; None when there is something to be made."""
    if not exists(join(uri, HEADER_NAME), storage):
        return None
    try:
        header, shares = read_header(uri, storage), read_shares(uri, storage)
    except InputError as error:
        _logger.warning("the responses are looked through again: %s", error)
        return None
    if header.shard_bytes != _shard_bytes(uri, manifest, storage):
        _logger.warning("responses below %s are missing or cut short and are made again", uri)
        return None
    return None if header.undecodable or shares is None else (header, shares)


def finish_cache(how: Answering, teacher: Teacher, manifest: Manifest, undecodable: int) -> CacheHeader:
    """Mark a cache whose shards are all written as finished, by its header; `undecodable` of its rows are empty."""
    header = CacheHeader(
        teacher=teacher.digest,
        classes=teacher.outputs.classes,
        tiles_digest=manifest.header.digest,
        tiles=manifest.header.tiles,
        undecodable=undecodable,
        views=how.cached.views,
        seed=how.cached.seed,
        flips=how.cached.augment.flips,
        crop_px=how.cached.augment.crop_px,
        dense=teacher.outputs.dense,
        multi_label=teacher.outputs.multi_label,
        layer=how.config.layer,
        map_shape=_map_shape(teacher, how.config, how.tile_px),
        shard_bytes=_shard_bytes(how.cached.uri, manifest, how.config.storage),
    )
    write_record(header, join(how.cached.uri, HEADER_NAME), how.config.storage)
    return header


def _shard_bytes(uri: str, manifest: Manifest, storage: Storage) -> int | None:
    """The bytes of all shards of a cache; None when one is missing."""
    names = manifest.table["shard"].unique().to_pylist()
    found = measure_files(uri, names, storage)
    return sum(found.values()) if len(found) == len(names) else None


def _map_shape(teacher: Teacher, config: CacheConfig, tile_px: int) -> tuple[int, int, int] | None:
    """The shape of the feature maps that are kept. Raises InputError when the teacher has no such layer."""
    if config.layer is None:
        return None
    if teacher.features is None:
        raise InputError(
            f"layer is {config.layer!r}, and only a network from a model folder has layers; set teacher.model, or "
            "leave it out."
        )
    return teacher.features.map_shape(config.layer, config.augment.crop_px or tile_px)


class _Answerer:
    """One actor: holds the teacher, answers shard after shard."""

    def __init__(self, how: Answering, mpp: float, digest: str) -> None:
        self.how = how
        config = how.config
        self.teacher = load_teacher(config.teacher, mpp, config.storage, gpu=config.workers.gpus > 0)
        if self.teacher.digest != digest:
            raise InputError(
                f"teacher {config.teacher.value} was replaced while its responses were cached; "
                "give the same command again, which caches those of what is there now."
            )
        self.manifest = read_manifest(config.tiles, config.storage)
        self.shards = {shard.shard: shard for shard in shards_of(self.manifest)}

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        shard, how = self.shards[item["shard"]], self.how
        answers = write_answers(self.teacher, shard, how)[how.cached.column(0)]
        side = how.cached.augment.crop_px or how.tile_px
        rows = np.arange(shard.first, shard.first + shard.tiles)
        tallies = tally_responses(answers, self.teacher, self.manifest, rows, side)
        undecodable = sum(not answer for answer in answers.to_pylist())
        return {
            "tiles": shard.tiles,
            "undecodable": undecodable,
            "slides": json.dumps([asdict(tally) for tally in tallies]),
        }


def check_cache(uri: str, header: CacheHeader, manifest: Manifest, teacher: Teacher) -> None:
    """Raises InputError unless the cache at `uri` answers the tiles of `manifest`, by `teacher`."""
    if header.tiles_digest != manifest.header.digest:
        raise InputError(
            f"responses {uri} answer another tile set than {manifest.uri}; "
            "cache them again with jobs/cache_responses.py."
        )
    if header.teacher != teacher.digest:
        raise InputError(
            f"responses {uri} come from another teacher than the configured one; cache this one's instead."
        )


def decisions(cached: CachedViews, channels: int, manifest: Manifest, storage: Storage) -> np.ndarray:
    """The most probable class of every tile in the cached responses to whole tiles, int64 [tiles]; 0 if undecodable.

    Raises InputError when a shard of responses is missing.
    """
    found = []
    for shard in shards_of(manifest):
        responses = first_responses(cached, shard, storage)
        if responses is None:
            uri = join(cached.uri, shard.shard)
            raise InputError(
                f"responses {uri} are missing, damaged or to other tiles; delete what is left of them and cache the "
                "responses again."
            )
        for response in responses.column(0).to_pylist():
            levels = decode_levels(response, channels, 1).flatten() if response else np.zeros(channels, np.uint8)
            found.append(int(np.argmax([ZERO, *levels])))
    return np.array(found, np.int64)


def check_views(uri: str, header: CacheHeader, augment: Augment) -> None:
    """Raises InputError when a run that varies its tiles by `augment` cannot show the views that the cache answers.

    Each window lies on a grid of whole pixels of every student; whether its side does is `check_window`'s to say.
    """
    if augment.shared_colors and augment.colors:
        raise InputError(
            f"data.augment.shared_colors colors the teacher's view, and responses {uri} answer uncolored tiles; "
            "leave it out, or let the teacher run beside (responses=null)."
        )
    if header.views > 1 and augment.crop_px != header.crop_px:
        shown, answered = (side or "null (whole tiles)" for side in (augment.crop_px, header.crop_px))
        raise InputError(
            f"data.augment.crop_px is {shown}, and responses {uri} answer views of crop_px {answered}; set it to that, "
            "or cache responses to other views."
        )
    if header.views == 1 and not header.outputs.dense and augment.crop_px is not None:
        raise InputError(
            f"data.augment.crop_px is {augment.crop_px}, and responses {uri} answer whole tiles, not parts of them; "
            f"leave it out, or cache responses to views of that size (views=8 augment.crop_px={augment.crop_px})."
        )
