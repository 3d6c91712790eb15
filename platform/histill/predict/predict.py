"""A model over every tile of a set, exactly once across crashes and restarts, and heatmaps of its slides.

Predictions lie at an address made of the model's digest, the tiles' and the slides they were cut from: each shard of
tiles has a file of its own, which is written whole or not at all, and a repeated run adds those that are missing.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from histill.artifacts.model_folder import ModelCard, check_like, load, resolve
from histill.cluster.actors import map_actors
from histill.cluster.connect import connect_cluster
from histill.cluster.progress import Progress
from histill.cluster.tasks import map_tasks
from histill.config.common import Storage
from histill.config.ingest import IngestConfig, SlideSource, SplitRule
from histill.config.predict import PredictConfig
from histill.errors import InputError
from histill.predict.draw import (
    SLIDES_NAME,
    Drawing,
    draw_slide,
    find_undrawn,
    plan_drawings,
    warn_of_unrecorded,
)
from histill.predict.finished import count_bytes, find_record
from histill.predict.record import HEADER_NAME, Predicted, PredictionsHeader
from histill.predict.shard import Predicting, Predictor
from histill.predict.slides_table import write_csv
from histill.storage.control import probe, write_bytes
from histill.storage.records import write_record
from histill.storage.uris import join
from histill.tiles.ingest import ingest
from histill.tiles.manifest import Manifest, read_manifest
from histill.tiles.shards import shards_of
from histill.tiles.slide_files import fingerprint_source
from histill.tiles.slide_records import read_slides
from histill.tiles.tally import SlideTally, count_classes, join_tallies

__all__ = ["HEADER_NAME", "Predicted", "predict"]
FORM = 2  # of what lies at an address; another one gets addresses of its own


def predict(config: PredictConfig) -> Predicted:
    """Let the model answer every tile; a finished run is only read, and drawn if that is still to be done.

    Raises InputError for an output that cannot be written, a model unlike the tiles, an empty split, more undecodable
    tiles than are allowed, and a model or tile set that is replaced meanwhile.
    """
    probe(config.output, config.storage)
    model = resolve(config.model, config.storage)
    _, card, digest = load(model, config.storage)
    tiles = config.tiles if config.tiles is not None else _ingest_slides(config, card)
    manifest = read_manifest(tiles, config.storage)
    check_like(card, manifest.header, tiles)
    expected = manifest.header.tiles if config.split is None else len(manifest.rows_of(config.split))
    uri = join(config.output, _address(digest, manifest, config))
    how = Predicting(config, model, tiles, uri, digest, manifest.header.digest)
    drawings = plan_drawings(how, manifest, card)
    if (header := find_record(how, manifest)) is not None:
        return _reuse(header, drawings, how)
    outputs = card.outputs
    with connect_cluster():
        tallies, seconds = _run_prediction(how, manifest, expected)
        heatmaps = _draw(drawings, tiles) if config.heatmaps else 0
    cases, files = _cases(manifest, tallies), {drawing.slide: drawing.file for drawing in drawings}
    table = write_csv(tallies.values(), outputs, cases, files)
    write_bytes(join(uri, SLIDES_NAME), table, config.storage)
    result = Predicted(
        predictions=uri,
        tiles=sum(tally.tiles for tally in tallies.values()),
        corrupt=sum(tally.undecodable for tally in tallies.values()),
        classes=count_classes(tallies.values()),
        slides=join(uri, SLIDES_NAME),
        skipped=manifest.header.skipped if config.slides else (),
        heatmaps=heatmaps,
        seconds=round(seconds, 1),
        reused=False,
    )
    header = PredictionsHeader(
        model=digest,
        tiles=manifest.header.digest,
        classes=outputs.scored,
        card=card,
        found=result,
        shard_bytes=count_bytes(how, manifest),
    )
    write_record(header, join(uri, HEADER_NAME), config.storage)
    return result


def _reuse(header: PredictionsHeader, drawings: Sequence[Drawing], how: Predicting) -> Predicted:
    """What an earlier run has found; heatmaps that it was not to draw, or that are gone, are drawn now."""
    found = header.found
    missing = find_undrawn(drawings) if how.config.heatmaps else []
    if missing:
        with connect_cluster():
            _draw(missing, how.tiles)
        found = replace(found, heatmaps=len(drawings))
        write_record(header.model_copy(update={"found": found}), join(how.uri, HEADER_NAME), how.config.storage)
    return replace(found, reused=True)


def _draw(drawings: Sequence[Drawing], tiles: str) -> int:
    """Draw each slide; how many were: others have no tile that was decoded."""
    warn_of_unrecorded(drawings, tiles)
    return sum(map_tasks(draw_slide, drawings, title="heatmaps", unit="slides")) if drawings else 0


def _address(digest: str, manifest: Manifest, config: PredictConfig) -> str:
    """16 hex digits that change with the model, the tiles, the slides that they lie on, and what is asked for."""
    records = read_slides(manifest, config.storage).values() if manifest.header.slides is not None else ()
    slides = [[each.name, each.identity, each.mpp, each.tile_side, each.origin] for each in records]
    parts = [FORM, digest, manifest.header.digest, config.split, config.masks, slides]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _ingest_slides(config: PredictConfig, card: ModelCard) -> str:
    """The slides' tiles, cut at the model's resolution; where they lie: files that were replaced are cut anew."""
    source = SlideSource(
        paths=config.slides, mpp=card.tile_mpp, slide_mpp=config.slide_mpp, min_tissue=config.min_tissue
    )
    files = [_fingerprint(slide, config.storage) for slide in config.slides]
    parts = json.dumps([source.model_dump(mode="json"), files, card.tile_px])
    digest = hashlib.sha256(parts.encode()).hexdigest()[:12]
    output = join(config.output, f"tiles-{digest}-{card.tile_px}px-{card.tile_mpp:g}mpp")
    rule = SplitRule(train=0.0, val=0.0, test=1.0)
    ingest(IngestConfig(output=output, tile_px=card.tile_px, slides=source, split=rule, storage=config.storage))
    return output


def _fingerprint(slide: str, storage: Storage) -> str | None:
    """None for a slide that is not there; ingest says so."""
    try:
        return fingerprint_source(slide, storage)
    except FileNotFoundError:
        return None


def _run_prediction(how: Predicting, manifest: Manifest, expected: int) -> tuple[dict[str, SlideTally], float]:
    """What is said of each slide, ascending by name, and the seconds since the first shard began.

    The slides that gave no tile are among them, unless a split is asked for.
    """
    config = how.config
    parts = [] if config.split is not None else _slides_without_tiles(manifest, config.storage)
    done = corrupt = 0
    begun = time.monotonic()
    progress = Progress("predicting", expected, "tiles")
    shards = [shard.plain() for shard in shards_of(manifest)]
    for shard in map_actors(shards, Predictor, (how,), config.workers):
        done, corrupt = done + shard["tiles"], corrupt + shard["corrupt"]
        parts += [SlideTally(**each) for each in json.loads(shard["slides"])]
        progress.update(done)
    progress.close()
    if done != expected:
        raise RuntimeError(f"{done} tiles were predicted of {expected}")
    if corrupt > config.max_corrupt:
        raise InputError(
            f"{corrupt} tiles of {manifest.uri} cannot be decoded and max_corrupt allows {config.max_corrupt}; the "
            "others' predictions are kept: delete the shards of these, repeat the ingest that made them and then this, "
            "or allow more."
        )
    return join_tallies(parts), time.monotonic() - begun


def _slides_without_tiles(manifest: Manifest, storage: Storage) -> list[SlideTally]:
    records = read_slides(manifest, storage).values() if manifest.header.slides is not None else ()
    return [SlideTally(each.name, 0, 0, 0.0, {}, ()) for each in records if not each.tiles]


def _cases(manifest: Manifest, slides: Mapping[str, SlideTally]) -> dict[str, list[str]]:
    """The cases that each of `slides` has tiles of."""
    cases: dict[str, list[str]] = {}
    for row in manifest.table.group_by(["slide", "case"], use_threads=False).aggregate([]).to_pylist():
        if row["slide"] in slides:
            cases.setdefault(row["slide"], []).append(row["case"])
    return cases
