"""hs2p with OpenSlide, into its own tar: histill's squares, encoded by Pillow."""

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.cutting.cases import QUALITY, TILE_PX, Cut

BACKEND = "openslide"


def cut(squares: Cut, backend: str = BACKEND) -> int:
    """Cut the squares; returns the number of tiles."""
    import hs2p

    found = hs2p.tile_slide(
        hs2p.SlideSpec(sample_id=squares.slide.stem, image_path=squares.slide),
        tiling=hs2p.TilingConfig(
            backend=backend,
            mask_backend=backend,
            requested_spacing_um=squares.case.mpp,
            requested_tile_size_px=TILE_PX,
            tolerance=0.05,
            overlap=0.0,
        ),
        segmentation=hs2p.SegmentationConfig(method="hsv", downsample=64),
    )
    x, y = np.array(squares.corners, np.int64).T
    numbers: dict[str, Any] = {"x": x, "y": y, "tissue_fractions": np.ones(len(x)), "tile_index": np.arange(len(x))}
    same = replace(found, tiles=replace(found.tiles, **numbers))
    _, written = hs2p.api.extract_tiles_to_tar(same, squares.out, jpeg_quality=QUALITY, jpeg_backend="pil")
    return len(written.x)
