"""Write a slide's embeddings as an HDF5 file like TRIDENT's, which tools for slide-level learning read.

The file holds two datasets, `features` [N, D] and `coords` [N, 2], with TRIDENT's attributes
(https://github.com/mahmoodlab/TRIDENT: `coords_to_h5` of trident/IO.py, `extract_patch_features` of
trident/wsi_objects/WSI.py).
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from histill.predict.slides import PredictedSlide
from histill.storage.control import write_bytes
from histill.storage.uris import join

FEATURES, FEATURES_ENDINGS = "features", (".h5",)
_OBJECTIVES = (80, 40, 20, 10, 5)  # nominal magnifications; 10 um/px divided by one is its resolution
_ROWS_PER_CHUNK = 256


@dataclass(frozen=True)
class SlideEmbeddings:
    """The embeddings of N tiles of a slide. Pixels are level-0 pixels unless stated otherwise."""

    slide: str
    values: np.ndarray  # float16 [N, D]
    coords: np.ndarray  # int64 [N, 2]: left and top edges, from the corner of level 0
    tile_px: int  # side of a tile, in pixels of its own
    tile_mpp: float  # um/px of a tile
    side: float  # side of a tile
    mpp: float  # um/px of level 0
    size: tuple[int, int] | None  # width and height of level 0; None: not recorded
    folder: str  # the file's folder


def write_features(slide: PredictedSlide) -> bool:
    """Write the slide's embeddings; False if no tile could be decoded.

    Without a slide record, level 0 is assumed to have the tiles' resolution. Raises InputError when some predictions
    are missing.
    """
    table = slide.read_tiles("x", "y", "embedding")
    if not table.num_rows:
        return False
    record, folder = slide.record, join(slide.uri, FEATURES)
    found = SlideEmbeddings(
        slide=slide.slide,
        values=np.asarray(table["embedding"].combine_chunks().flatten()).reshape(table.num_rows, -1),
        coords=np.stack([table[axis].to_numpy() for axis in "xy"], axis=1).astype(np.int64),
        tile_px=slide.tile_px,
        tile_mpp=slide.tile_mpp,
        side=slide.tile_side,
        mpp=slide.tile_mpp if record is None else record.mpp,
        size=None if record is None else (record.width, record.height),
        folder=folder,
    )
    write_bytes(join(folder, slide.file + FEATURES_ENDINGS[0]), encode_features(found), slide.storage)
    return True


def encode_features(found: SlideEmbeddings) -> bytes:
    """Encode the file, with float32 `features`, because torch's layers reject float16.

    TRIDENT's attributes round resolutions to nominal magnifications and sides to whole pixels. The exact values are in
    three more attributes: `level0_mpp`, `target_mpp` and `tile_side_level0`.
    """
    import h5py

    attributes: dict[str, Any] = {
        "patch_size": found.tile_px,
        "patch_size_level0": round(found.side),
        "level0_magnification": nominal_magnification(found.mpp),
        "target_magnification": nominal_magnification(found.tile_mpp),
        "overlap": 0,
        "name": found.slide,
        "savetodir": found.folder,
        "level0_mpp": found.mpp,
        "target_mpp": found.tile_mpp,
        "tile_side_level0": found.side,
    }
    if found.size is not None:
        attributes |= {"level0_width": found.size[0], "level0_height": found.size[1]}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in (("features", found.values.astype(np.float32)), ("coords", found.coords)):
            rows = min(len(values), _ROWS_PER_CHUNK)
            file.create_dataset(name, data=values, chunks=(rows, values.shape[1]), maxshape=(None, values.shape[1]))
        file["features"].attrs.update({"name": found.slide, "savetodir": found.folder})
        file["coords"].attrs.update(attributes)
    return buffer.getvalue()


def nominal_magnification(mpp: float) -> int:
    """The nominal magnification with the resolution nearest to `mpp`: 40 for 0.25."""
    return min(_OBJECTIVES, key=lambda power: abs(np.log(10 / mpp / power)))
