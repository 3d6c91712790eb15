"""A model over every tile of a set, exactly once across crashes and restarts, and heatmaps of its slides.

Predictions lie at an address made of the model's digest and the tiles': each shard of tiles has a file of its own,
which is written whole or not at all, and a repeated run adds those that are missing.
"""

import hashlib
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histill.artifacts.model_folder import ModelCard, check_like, load, resolve
from histill.cluster.connect import connected
from histill.cluster.pool import over_pool
from histill.cluster.progress import Progress
from histill.cluster.tasks import map_tasks
from histill.config.common import Storage
from histill.config.ingest import IngestConfig, SlideSource, SplitRule
from histill.config.predict import PredictConfig
from histill.distill.boundary import counted
from histill.errors import InputError
from histill.predict.heatmap import SlideMap, heatmap_geojson, heatmap_png
from histill.predict.shard import Predicting, Predictor
from histill.storage.control import exists, read_json, write_bytes, write_json
from histill.storage.tables import read_columns
from histill.storage.uris import join
from histill.tiles.ingest import ingest
from histill.tiles.manifest import Manifest, read_manifest
from histill.tiles.shards import shards_of

HEADER_NAME = "predictions.json"
HEATMAPS = "heatmaps"


@dataclass(frozen=True)
class Predicted:
    """Finished predictions."""

    predictions: str  # folder
    tiles: int
    corrupt: int
    classes: dict[str, int]  # tiles of each
    heatmaps: int  # slides that have one
    seconds: float  # that the tiles took
    reused: bool


def predict(config: PredictConfig) -> Predicted:
    """Let the model answer every tile; a finished run is only read.

    Raises InputError for a model unlike the tiles, an empty split, and more undecodable tiles than are allowed.
    """
    model = resolve(config.model, config.storage)
    _, card, digest = load(model, config.storage)
    tiles = config.tiles if config.tiles is not None else _cut(config, card)
    manifest = read_manifest(tiles, config.storage)
    check_like(card, manifest.header, tiles)
    expected = manifest.header.tiles if config.split is None else len(manifest.rows_of(config.split))
    how = Predicting(config, model, tiles, join(config.output, _address(digest, manifest, config)))
    header = join(how.uri, HEADER_NAME)
    if exists(header, config.storage):
        return Predicted(**read_json(header, config.storage)["found"] | {"reused": True})
    with connected():
        found = _predicted(how, manifest, expected)
        classes = counted(card.classes) if card.kind == "segmentation" else card.classes
        counts = _counts(how, manifest)
        heatmaps = _heatmaps(how, manifest, classes) if config.heatmaps else 0
    result = Predicted(how.uri, found[0], found[1], counts, heatmaps, round(found[2], 1), reused=False)
    by = {"model": digest, "tiles": manifest.header.digest, "classes": classes, "card": card.model_dump(mode="json")}
    write_json(header, by | {"found": asdict(result)}, config.storage)
    return result


def _address(digest: str, manifest: Manifest, config: PredictConfig) -> str:
    parts = f"{digest}:{manifest.header.digest}:{config.split}:{config.masks}"
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _cut(config: PredictConfig, card: ModelCard) -> str:
    """The slides' tiles, cut at the model's resolution; where they lie."""
    names = hashlib.sha256("\n".join(config.slides).encode()).hexdigest()[:8]
    output = join(config.output, f"tiles-{names}-{card.tile_px}px-{card.tile_mpp:g}mpp")
    source = SlideSource(
        paths=config.slides, mpp=card.tile_mpp, slide_mpp=config.slide_mpp, min_tissue=config.min_tissue
    )
    rule = SplitRule(train=0.0, val=0.0, test=1.0)
    ingest(IngestConfig(output=output, tile_px=card.tile_px, slides=source, split=rule, storage=config.storage))
    return output


def _predicted(how: Predicting, manifest: Manifest, expected: int) -> tuple[int, int, float]:
    """Tiles, undecodable ones, and the seconds since the first shard began."""
    done = corrupt = 0
    begun = time.monotonic()
    progress = Progress("predicting", expected, "tiles")
    shards = [shard.plain() for shard in shards_of(manifest)]
    for shard in over_pool(shards, Predictor, (how,), how.config.workers):
        done, corrupt = done + shard["tiles"], corrupt + shard["corrupt"]
        progress.update(done)
    progress.close()
    if done != expected:
        raise RuntimeError(f"{done} tiles were predicted of {expected}")
    if corrupt > how.config.max_corrupt:
        raise InputError(
            f"{corrupt} tiles of {manifest.uri} cannot be decoded and max_corrupt allows {how.config.max_corrupt}; the "
            "others' predictions are kept: ingest these again, or repeat with more allowed."
        )
    return done, corrupt, time.monotonic() - begun


def _counts(how: Predicting, manifest: Manifest) -> dict[str, int]:
    """How many tiles there are of each class."""
    counts: Counter[str] = Counter()
    for shard in shards_of(manifest):
        found = read_columns(join(how.uri, shard.shard), ["class"], how.config.storage)
        if found is not None:
            said = found["class"].drop_null().value_counts().to_pylist()
            counts.update({each["values"]: each["counts"] for each in said})
    return dict(sorted(counts.items()))


def _heatmaps(how: Predicting, manifest: Manifest, classes: tuple[str, ...]) -> int:
    """Draw each slide that has several tiles; how many have."""
    table = manifest.table
    tiles = {each["values"]: each["counts"] for each in table["slide"].value_counts().to_pylist()}
    slides = [slide for slide, count in sorted(tiles.items()) if count > 1]
    if not slides:
        return 0
    pairs = zip(table["slide"].to_pylist(), table["shard"].to_pylist(), strict=True)
    shards: dict[str, list[str]] = {}
    for slide, shard in dict.fromkeys(pairs):
        shards.setdefault(slide, []).append(shard)
    work = partial(_drawn, shards=shards, uri=how.uri, classes=classes, storage=how.config.storage)
    return sum(map_tasks(work, slides, title="heatmaps", unit="slides"))


def _drawn(slide: str, *, shards: Mapping[str, list[str]], uri: str, classes: tuple[str, ...], storage: Storage) -> int:
    """Write the slide's heatmap; 1, or 0 where there was nothing to draw."""
    columns = ["slide", "x", "y", "class", "probabilities"]
    parts = [read_columns(join(uri, shard), columns, storage) for shard in shards[slide]]
    table = pa.concat_tables([part for part in parts if part is not None])
    table = table.filter(pc.and_(pc.equal(table["slide"], slide), pc.is_valid(table["class"])))
    if table.num_rows < 2:
        return 0
    found = SlideMap(
        slide=slide,
        classes=classes,
        x=table["x"].to_numpy().astype(np.int64),
        y=table["y"].to_numpy().astype(np.int64),
        probabilities=np.stack(table["probabilities"].to_numpy(zero_copy_only=False).tolist()),
        names=tuple(table["class"].to_pylist()),
    )
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", slide)
    write_bytes(join(uri, f"{HEATMAPS}/{safe}.png"), heatmap_png(found), storage)
    write_bytes(join(uri, f"{HEATMAPS}/{safe}.geojson"), heatmap_geojson(found), storage)
    return 1
