"""Draw a teacher's cached responses over some tiles."""

from collections.abc import Iterator

import numpy as np
import torch

from histill.config.common import Storage
from histill.errors import InputError
from histill.evaluate.pictures import COLORS, draw_outlines, show_tile, write_png
from histill.outputs import OutputSpec
from histill.stream.read import TileSource
from histill.stream.responses import levels_to_logits
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.teachers.cache import CacheHeader
from histill.teachers.shares import group_by
from histill.tiles.manifest import Manifest
from histill.tiles.row_runs import RowRuns

CONTOURS_NAME = "contours.png"
_TILES, _ACROSS = 12, 4
_ROOM = 40  # characters that fit above a tile


def draw_contours(uri: str, header: CacheHeader, manifest: Manifest, storage: Storage) -> bytes:
    """Draw, as a PNG, tiles of up to 12 slides with outlines of the classes in the responses at `uri`.

    Each title has the tile's slide or case, its name and the two largest class shares or, for a teacher of whole tiles,
    class probabilities. Of several views the first is shown. Raises InputError when no tile can be shown.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    outputs, shown = header.outputs, list(read_responses(uri, header, manifest, storage))
    if not shown:
        raise InputError(
            f"none of the responses {uri} that were to be shown can be decoded; cache them again.",
            code="responses-missing",
        )
    down = -(-len(shown) // _ACROSS)
    figure = Figure(figsize=(3.2 * _ACROSS, 3.8 * down + 0.5), layout="constrained")
    axes = figure.subplots(down, _ACROSS, squeeze=False).flatten().tolist()
    for axis, (row, image, said) in zip(axes, shown, strict=False):
        show_tile(axis, image, f"{name_tile(manifest, row)}\n{_say(outputs, said)}", _ROOM)
        if outputs.dense:
            draw_outlines(axis, said.argmax(0), len(header.classes))
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    if outputs.dense:
        handles = [
            Line2D([], [], color=COLORS[index % len(COLORS)], label=name)
            for index, name in enumerate(header.classes[1:])
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return write_png(figure)


def read_responses(
    uri: str, header: CacheHeader, manifest: Manifest, storage: Storage
) -> Iterator[tuple[int, np.ndarray, torch.Tensor]]:
    """Yield, for a sample of tiles, manifest row, pixels of the first view, uint8 [H, W, 3], and logits, [K, H, W]."""
    stream = TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, storage, responses=header.at(uri)),
        split="",
        only=spread_over_slides(manifest, _TILES),
        views=Views(manifest.header.tile_px),
        batch_size=_TILES,
        worker=0,
        workers=1,
        max_corrupt=_TILES,
    )
    for batch in stream.exact_pass():
        assert batch.response is not None
        logits = header.outputs.unpack(levels_to_logits(batch.response))
        for slot in torch.nonzero(batch.valid).flatten().tolist():
            # The stream reuses a batch's memory, so copy.
            yield int(batch.index[slot]), batch.student[slot].permute(1, 2, 0).numpy().copy(), logits[slot].clone()


def name_tile(manifest: Manifest, row: int) -> str:
    """Two lines for the tile at manifest `row`: its slide (its case, if each image is its own slide) and its name."""
    place = manifest.tile(row)
    within = place["tile_id"].removeprefix(place["slide"]).lstrip("_/")
    return f"{place[group_by(manifest)]}\n{within or place['tile_id']}"


def spread_over_slides(manifest: Manifest, count: int) -> np.ndarray:
    """Manifest rows, int64, ascending, of at most `count` tiles, spread evenly over and within as many slides."""
    slides = _spread(np.sort(manifest.rows.coded["slide"].values.to_numpy(zero_copy_only=False)), count)
    each = -(-count // len(slides))
    rows = [_spread(manifest.rows.find("slide", {slide}), each) for slide in slides]
    return _spread(np.sort(np.concatenate(rows)), count)


def _spread(values: np.ndarray | RowRuns, count: int) -> np.ndarray:
    """At most `count` of `values`, evenly spaced; for `count` 1 the middle one."""
    if len(values) <= count:
        return np.asarray(values)
    return values[((np.arange(count) + 0.5) * len(values) / count).astype(int)]


def _say(outputs: OutputSpec, logits: torch.Tensor) -> str:
    if not outputs.dense:
        values = outputs.probabilities(logits[None]).flatten()
    else:
        values = torch.bincount(logits.argmax(0).flatten(), minlength=len(outputs.classes)) / logits[0].numel()
    likely = torch.argsort(values, descending=True).tolist()
    chosen = [index for index in likely if index or not outputs.dense][:2]
    return ", ".join(f"{outputs.classes[index]} {float(values[index]):.1%}" for index in chosen)
