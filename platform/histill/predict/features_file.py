"""Write the embeddings of one slide's tiles as HDF5 in TRIDENT's form, which toolkits for slide-level learning read.

Two data sets, `features` [N, D] and `coords` [N, 2], and the attributes that TRIDENT gives them (its `trident/IO.py`,
`coords_to_h5`, and `trident/wsi_objects/WSI.py`, `extract_patch_features`).
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from histill.predict.slides import PredictedSlide
from histill.storage.control import write_bytes
from histill.storage.uris import join

FEATURES, FEATURES_ENDINGS = "features", (".h5",)
_OBJECTIVES = (80, 40, 20, 10, 5)  # at 10 um/px divided by them, as is customary
_ROWS_PER_CHUNK = 256


@dataclass(frozen=True)
class SlideEmbeddings:
    """The embeddings of N tiles of one slide. Pixels are those of the slide's level 0."""

    slide: str
    values: np.ndarray  # float16 [N, D]
    coords: np.ndarray  # int64 [N, 2]: left and top edges, from the corner of level 0, as OpenSlide counts
    tile_px: int
    tile_mpp: float  # um/px of a tile
    side: float  # of a tile
    mpp: float  # um/px of level 0
    size: tuple[int, int] | None  # width and height of level 0; None: not on record
    folder: str  # where the file is kept


def write_features(slide: PredictedSlide) -> bool:
    """Write the file of the slide's embeddings; False where no tile could be decoded.

    Without a record of the slide its level 0 is taken to have the resolution of the tiles. Raises InputError when a
    part of the predictions is missing.
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
    """The file: `features` as float32, which layers of torch take as they are, and `coords`.

    TRIDENT knows resolutions as whole magnifications and sides as whole pixels; what they round is in the attributes
    `level0_mpp`, `target_mpp` and `tile_side_level0`, which are ours.
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
    """The objective power of a usual scanner whose microns per pixel are nearest to `mpp`: 40 for 0.25."""
    return min(_OBJECTIVES, key=lambda power: abs(np.log(10 / mpp / power)))
