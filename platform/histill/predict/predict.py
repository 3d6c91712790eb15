"""Predict every tile of a set exactly once, across crashes and restarts, and draw heatmaps of its slides.

The predictions' folder is named by a digest of the model, the tiles and the slides they were cut from. Each shard of
tiles gets a file, written whole or not at all; a repeated run adds the missing ones.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from histill.artifacts.model_folder import ModelCard, check_like, load, resolve
from histill.cluster.connect import connect_cluster
from histill.cluster.metrics import Job, name_job
from histill.cluster.parallel import map_actors, map_tasks
from histill.cluster.progress import track
from histill.cluster.sharded import ShardedFolder, name_by_content
from histill.config.common import Parts, Storage, Workers
from histill.config.ingest_tiles import IngestConfig, SplitRule
from histill.config.predict_tiles import PredictConfig
from histill.engines.engine import Choice
from histill.errors import InputError
from histill.predict.detections import DETECTION_ENDINGS, DETECTIONS, write_detections
from histill.predict.draw import HEATMAP_ENDINGS, HEATMAPS, draw_slide
from histill.predict.features_file import FEATURES, FEATURES_ENDINGS, write_features
from histill.predict.overlay import OVERLAY_ENDINGS, OVERLAYS, write_overlay
from histill.predict.record import HEADER_NAME, Predicted, PredictionsHeader
from histill.predict.shard import PredictionJob, PredictionWorker, slide_source
from histill.predict.slides import PredictedSlide, find_unmade, plan_slides, warn_of_unrecorded
from histill.predict.slides_table import SLIDES_NAME, write_csv
from histill.storage.control import exists, measure_files, probe, write_bytes
from histill.storage.records import read_record, write_record
from histill.storage.uris import is_remote, join
from histill.tiles.ingest import ingest
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest
from histill.tiles.slide_identity import fingerprint_source
from histill.tiles.slide_records import read_slides
from histill.tiles.tally import SlideTally, count_classes, join_tallies, tally_shards

__all__ = ["HEADER_NAME", "Predicted", "predict"]
FORM = 2  # version of the file format; part of the folder's name


@dataclass(frozen=True)
class _SlideFiles:
    """What is made of each slide after its tiles are predicted."""

    folder: str
    endings: tuple[str, ...]
    write: Callable[[Sequence[PredictedSlide], Workers], int]

    def make_all(self, slides: Sequence[PredictedSlide], workers: Workers) -> int:
        """Make the files of each slide; return for how many: the others have no decodable tile."""
        return self.write(slides, workers) if slides else 0


def _slide_by_slide(folder: str, endings: tuple[str, ...], make: Callable[[PredictedSlide], bool]) -> _SlideFiles:
    """Files that `make` makes of one slide at a time; it returns whether it did."""

    def write(slides: Sequence[PredictedSlide], workers: Workers) -> int:
        made = map_tasks(make, slides, threads=1 if workers.in_process else None)
        return sum(track(made, len(slides), title=folder, unit="slides"))

    return _SlideFiles(folder, endings, write)


_HEATMAPS = _slide_by_slide(HEATMAPS, HEATMAP_ENDINGS, draw_slide)
_FEATURES = _slide_by_slide(FEATURES, FEATURES_ENDINGS, write_features)
_DETECTIONS = _SlideFiles(DETECTIONS, DETECTION_ENDINGS, write_detections)
_OVERLAYS = _slide_by_slide(OVERLAYS, OVERLAY_ENDINGS, write_overlay)


def predict(config: PredictConfig) -> Predicted:
    """Predict every tile; finished predictions are reused, and only missing files of slides made.

    Raises InputError for an output that cannot be written, a model that does not match the tiles, an empty split, more
    undecodable tiles than allowed, and a model or tile set that is replaced meanwhile.
    """
    probe(config.output, config.storage)
    model = resolve(config.model, config.storage)
    _, card, digest = load(model, config.storage)
    if card.kind == "encoder":
        config = config.model_copy(update={"embeddings": True, "heatmaps": False})
    tiles = config.tiles if config.tiles is not None else _ingest_slides(config, card)
    manifest = read_manifest(tiles, config.storage, cut=config.tiles is not None)
    check_like(card, manifest.header, tiles)
    expected = manifest.header.tiles if config.split is None else len(manifest.select(config.split))
    uri = join(config.output, _address(digest, manifest, config))
    left = _count_left(manifest, config, uri)
    job = PredictionJob(config, model, tiles, uri, digest, manifest.header.digest, left)
    slides, folder = plan_slides(job, manifest, card), ShardedFolder(uri, HEADER_NAME, config.storage)
    if (header := _find_finished(folder, manifest, config)) is not None:
        return _reuse(header, slides, job)
    with connect_cluster(in_process=config.workers.in_process), name_job(Job("predict_tiles", config.output)):
        begun = time.monotonic()
        shards = map_actors(PredictionWorker, (job,), bundle_shards(manifest, config), config.workers)
        engines: set[str] = set()
        found = tally_shards(_note_engines(shards, engines), expected, "predicting")
        seconds = time.monotonic() - begun
        tallies = _join(found, manifest, config)
        if wanted := _wanted(config):
            warn_of_unrecorded(slides, tiles)
        made = {files.folder: files.make_all(slides, config.workers) for files in wanted}
    cases, names = _cases(manifest, tallies), {slide.slide: slide.file for slide in slides}
    table = write_csv(tallies.values(), card.outputs, cases, names)
    write_bytes(join(uri, SLIDES_NAME), table, config.storage)
    result = Predicted(
        predictions=uri,
        tiles=sum(tally.tiles for tally in tallies.values()),
        corrupt=sum(tally.undecodable for tally in tallies.values()),
        classes=count_classes(tallies.values()) if card.outputs.scored else {},
        slides=join(uri, SLIDES_NAME),
        skipped=manifest.header.skipped if config.slides else (),
        heatmaps=made.get(HEATMAPS, 0),
        seconds=round(seconds, 1),
        reused=False,
        features=made.get(FEATURES, 0),
        detections=made.get(DETECTIONS, 0),
        overlays=made.get(OVERLAYS, 0),
        engine=" and ".join(sorted(engines)),
    )
    header = PredictionsHeader(
        model=digest,
        tiles=manifest.header.digest,
        classes=card.outputs.scored,
        card=card,
        found=result,
    )
    folder.finish(header, manifest.shards(config.split))
    return result


def _count_left(manifest: Manifest, config: PredictConfig, uri: str) -> int:
    """The number of tiles in shards without predictions."""
    there = measure_files(uri, manifest.shards(config.split), config.storage)
    tiles = ((shard, count) for (of, shard), count in manifest.count("split", "shard") if config.split in (None, of))
    return sum(count for shard, count in tiles if shard not in there)


def bundle_shards(manifest: Manifest, config: PredictConfig) -> list[str]:
    """The names of the shards to predict, those in one piece of work joined by line breaks.

    A worker fetches the slide that it cuts tiles from, if that is in object storage; where there are enough slides for
    all workers, each is therefore one piece.
    """
    shards = manifest.shards(config.split)
    slides: dict[str, list[str]] = {}
    for (slide, shard), _ in manifest.count("slide", "shard"):
        slides.setdefault(slide, []).append(shard)
    if manifest.header.cut or len(slides) < config.workers.count or not any(map(is_remote, config.slides)):
        return shards
    return ["\n".join(each) for each in slides.values()]


def _note_engines(shards: Iterable[Mapping[str, Any]], engines: set[str]) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yield the tallies of each shard; say once of each engine what it is, and note it in `engines`."""
    for shard in shards:
        if shard["engine"] is not None and shard["engine"]["name"] not in engines:
            choice = Choice(**shard["engine"])
            choice.say()
            engines.add(choice.name)
        yield shard["slides"]


def _wanted(config: PredictConfig) -> list[_SlideFiles]:
    asked = {
        _HEATMAPS: config.heatmaps,
        _FEATURES: config.embeddings,
        _DETECTIONS: config.objects is not None,
        _OVERLAYS: config.overlay_mpp is not None,
    }
    return [files for files, wanted in asked.items() if wanted]


def _find_finished(folder: ShardedFolder, manifest: Manifest, config: PredictConfig) -> PredictionsHeader | None:
    """The header of complete predictions; None if anything remains to be done.

    Undecodable tiles are retried, since they may have been repaired.
    """
    uri = join(folder.uri, HEADER_NAME)
    header = folder.read_header(lambda: read_record(PredictionsHeader, uri, folder.storage))
    if header is None or not folder.is_whole(manifest.shards(config.split), header.shard_bytes) or header.found.corrupt:
        return None
    return header if exists(join(folder.uri, SLIDES_NAME), folder.storage) else None


def _reuse(header: PredictionsHeader, slides: Sequence[PredictedSlide], job: PredictionJob) -> Predicted:
    """Return an earlier run's result, after making files of slides that it skipped or that are gone."""
    found = header.found
    unmade = {files: find_unmade(slides, files.folder, files.endings) for files in _wanted(job.config)}
    if any(unmade.values()):
        warn_of_unrecorded([slide for missing in unmade.values() for slide in missing], job.tiles)
        with (
            connect_cluster(in_process=job.config.workers.in_process),
            name_job(Job("predict_tiles", job.config.output)),
        ):
            for files, missing in unmade.items():
                files.make_all(missing, job.config.workers)
        counts = {files.folder: len(slides) for files, missing in unmade.items() if missing}
        found = replace(
            found,
            heatmaps=counts.get(HEATMAPS, found.heatmaps),
            features=counts.get(FEATURES, found.features),
            detections=counts.get(DETECTIONS, found.detections),
            overlays=counts.get(OVERLAYS, found.overlays),
        )
        write_record(header.model_copy(update={"found": found}), join(job.uri, HEADER_NAME), job.config.storage)
    return replace(found, reused=True)


def _address(digest: str, manifest: Manifest, config: PredictConfig) -> str:
    """16 hex digits that change with the model, the tiles, their slides, and the options that affect the output."""
    records = read_slides(manifest, config.storage).values() if manifest.header.slides is not None else ()
    slides = [[each.name, each.identity, each.mpp, each.tile_side, each.origin] for each in records]
    parts = [FORM, digest, manifest.header.digest, config.split, config.masks, slides]
    parts += ["embeddings"] if config.embeddings else []
    parts += [config.objects.model_dump()] if config.objects is not None else []
    parts += [{"overlay_mpp": config.overlay_mpp}] if config.overlay_mpp is not None else []
    return name_by_content(json.dumps(parts))


def _ingest_slides(config: PredictConfig, card: ModelCard) -> str:
    """Lay out the slides' tiles at the model's resolution, and cut them if they are kept.

    Returns the tile set's URI, which changes if a file is replaced.
    """
    source = slide_source(config, card)
    files = [_fingerprint(file, config.storage) for file in (*config.slides, *config.regions)]
    later = {"annotations"} | ({"icc"} if source.icc is None else set())  # folders of before they existed go on
    parts = json.dumps([source.model_dump(mode="json", exclude=later), files, card.tile_px])
    digest = hashlib.sha256(parts.encode()).hexdigest()[:12]
    kind = "tiles" if config.keep_tiles else "places"
    output = join(config.output, f"{kind}-{digest}-{card.tile_px}px-{card.tile_mpp:g}mpp")
    rule = SplitRule(train=0.0, val=0.0, test=1.0)
    cut = IngestConfig(output=output, tile_px=card.tile_px, slides=source, split=rule, storage=config.storage)
    report = ingest(cut.model_copy(update={"workers": Parts(count=0 if config.workers.in_process else None)}))
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    return output


def _fingerprint(file: str, storage: Storage) -> str | None:
    """The fingerprint of a slide or its regions; None for a missing file, which ingest reports."""
    try:
        return fingerprint_source(file, storage)
    except FileNotFoundError:
        return None


def _join(tallies: list[SlideTally], manifest: Manifest, config: PredictConfig) -> dict[str, SlideTally]:
    """Merge the shards' tallies into one per slide, ascending by name.

    Slides without tiles are included, unless a split was chosen. Raises InputError when more tiles are undecodable than
    allowed.
    """
    corrupt = sum(tally.undecodable for tally in tallies)
    if corrupt > config.max_corrupt:
        raise InputError(
            f"{corrupt} tiles of {manifest.uri} cannot be decoded and max_corrupt allows {config.max_corrupt}; the "
            "others' predictions are kept: delete the shards of these, repeat the ingest that made them and then this, "
            "or allow more.",
            code="tiles-undecodable",
        )
    return join_tallies(tallies + ([] if config.split is not None else _slides_without_tiles(manifest, config.storage)))


def _slides_without_tiles(manifest: Manifest, storage: Storage) -> list[SlideTally]:
    records = read_slides(manifest, storage).values() if manifest.header.slides is not None else ()
    return [SlideTally(each.name, 0, 0, 0.0, {}, ()) for each in records if not each.tiles]


def _cases(manifest: Manifest, slides: Mapping[str, SlideTally]) -> dict[str, list[str]]:
    """The cases of each of `slides`, from its tiles."""
    cases: dict[str, list[str]] = {}
    for (slide, case), _ in manifest.count("slide", "case"):
        if slide in slides:
            cases.setdefault(slide, []).append(case)
    return cases
