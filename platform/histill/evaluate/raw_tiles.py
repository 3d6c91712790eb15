"""Read tiles both as a model sees them and as they were encoded."""

import numpy as np
import torch
from torch import Tensor

from histill.errors import InputError
from histill.evaluate.evaluator import Evaluator
from histill.stream.index import SampleIndex
from histill.stream.read import ShardReader, TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views


def read_cut_tiles(examiner: Evaluator, tiles: np.ndarray) -> tuple[Tensor, list[bytes]]:
    """The decodable ones of `tiles` (int64, ascending manifest rows): the model's input, uint8 [N, 3, S, S], prepared
    as for predictions, and their encoded bytes.

    Raises InputError when none can be decoded.
    """
    manifest = examiner.manifest
    source = TileSource(manifest.uri, manifest.header.digest, examiner.storage)
    stream = TileStream(
        manifest=manifest,
        source=source,
        split=examiner.held_out.split,
        only=tiles,
        views=Views(examiner.card.size_px),
        batch_size=examiner.held_out.batch_size,
        worker=0,
        workers=1,
        max_corrupt=len(tiles),
    )
    seen: dict[int, Tensor] = {}
    for batch in stream.exact_pass():
        rows = batch.index[batch.valid].tolist()
        seen |= zip(rows, batch.student[batch.valid], strict=True)
    if not seen:
        raise InputError(
            f"none of {len(tiles)} tiles of {manifest.uri} can be decoded; ingest them again.", code="tiles-undecodable"
        )
    reads = SampleIndex.at(manifest, tiles).reads(np.arange(len(tiles)))
    encoded = [image for table in ShardReader()(source, reads) for image in table["image"].to_pylist()]
    cut = dict(zip(tiles.tolist(), encoded, strict=True))
    return torch.stack(list(seen.values())), [cut[row] for row in seen]
