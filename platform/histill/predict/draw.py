"""Draw the heatmap of a slide from the predictions for its tiles."""

import numpy as np

from histill.predict.geojson import heatmap_geojson
from histill.predict.heatmap import heatmap_png
from histill.predict.slide_map import SlideMap
from histill.predict.slides import PredictedSlide
from histill.storage.control import write_bytes
from histill.storage.uris import join

HEATMAPS, HEATMAP_ENDINGS = "heatmaps", (".png", ".geojson")


def draw_slide(slide: PredictedSlide) -> bool:
    """Write the slide's heatmap as PNG and GeoJSON; False if no tile could be decoded."""
    found = read_slide_map(slide)
    if found is None:
        return False
    target = join(slide.uri, HEATMAPS, slide.file)
    for ending, made in zip(HEATMAP_ENDINGS, (heatmap_png(found), heatmap_geojson(found)), strict=True):
        write_bytes(target + ending, made, slide.storage)
    return True


def read_slide_map(slide: PredictedSlide) -> SlideMap | None:
    """Read the predictions of a slide, placed by its record; None if no tile could be decoded.

    Raises InputError when some of them are missing.
    """
    table = slide.read_tiles("x", "y", "probabilities")
    if not table.num_rows:
        return None
    record = slide.record
    return SlideMap(
        slide=slide.slide,
        classes=slide.classes,
        x=table["x"].to_numpy().astype(np.int64),
        y=table["y"].to_numpy().astype(np.int64),
        probabilities=np.stack(table["probabilities"].to_numpy(zero_copy_only=False).tolist()),
        names=tuple(table["class"].to_pylist()),
        side=slide.tile_side,
        origin=slide.origin,
        segmenter=slide.segmenter,
        mpp=None if record is None else record.mpp,
    )
