"""Read tiles that a model was trained on, for what must not be fitted to held-out tiles."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from histill.artifacts.lineage import tile_sets
from histill.artifacts.model_folder import ModelCard
from histill.artifacts.overlap import find_tile_set
from histill.config.common import Storage
from histill.errors import InputError
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import Manifest, digest_case

_BATCH = 32


def read_training_tiles(card: ModelCard, held_out: Manifest, split: str, count: int, storage: Storage) -> Tensor:
    """At most `count` tiles of the training cases on the `card`, spread over its tile set: uint8 [N, 3, S, S] at the
    model's input size, without augmentation, none from `split` of the tile set `held_out`.

    Raises InputError if the tile set is no longer where it was, nor beside the held-out tiles, or has no such tile.
    """
    manifest = _find(card, held_out, storage)
    cases = manifest.rows.coded["case"].values.to_pylist()
    taught = frozenset(card.train_cases)
    rows = np.asarray(manifest.rows.find("case", {case for case in cases if digest_case(case) in taught}))
    if manifest is held_out:
        rows = np.setdiff1d(rows, manifest.rows_of(split))
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    found = [] if not len(rows) else [batch.clone() for batch in _stream(card, manifest, rows, storage)]
    if not any(map(len, found)):
        raise InputError(
            f"quantized formats are calibrated on tiles that the model was trained on, and {manifest.uri} has none "
            "that can be decoded; name a model whose card lists its training cases, or leave int8 out of formats.",
            code="tiles-missing",
        )
    return torch.cat(found)


def _find(card: ModelCard, held_out: Manifest, storage: Storage) -> Manifest:
    """The tile set that the model was trained on."""
    if card.tiles_digest == held_out.header.digest:
        return held_out
    own = next((tiles for tiles in tile_sets(card) if tiles.digest == card.tiles_digest), None)
    manifest = None if own is None else find_tile_set(own, held_out.uri, storage)
    if own is None or manifest is None:
        place = f"at {own.uri} nor " if own is not None and own.uri else ""
        raise InputError(
            "quantized formats are calibrated on the tiles that the model was trained on, and tile set "
            f"{card.tiles_digest[:12]} is neither {place}beside the held-out tiles; put it back, or leave int8 out of "
            "formats.",
            code="tiles-missing",
        )
    return manifest


def _stream(card: ModelCard, manifest: Manifest, rows: np.ndarray, storage: Storage) -> Iterator[Tensor]:
    stream = TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, storage),
        split="train",
        only=rows,
        views=Views(card.size_px),
        batch_size=_BATCH,
        worker=0,
        workers=1,
        max_corrupt=len(rows),
    )
    for batch in stream.exact_pass():
        yield batch.student[batch.valid]
