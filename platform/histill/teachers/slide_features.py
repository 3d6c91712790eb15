"""Features of slides that were extracted elsewhere, joined to the tiles of a set by slide and place.

One H5 file for each slide, `<slide>.h5`, as TRIDENT writes it (https://github.com/mahmoodlab/TRIDENT, `trident/IO.py`):
`features` [N, D], or [1, N, D], and `coords` [N, 2] with the top left corners of the patches and, in its attributes,
their side `patch_size_level0`, all in pixels of level 0. A tile has the features of the patch that begins where it
begins and is as large as it; there is no next best.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histill.config.common import Storage
from histill.config.encoder import FeaturesTeacher
from histill.errors import InputError
from histill.licenses import License
from histill.outputs import OutputSpec
from histill.storage.control import list_sizes, read_bytes
from histill.storage.uris import join
from histill.teachers.encoder_presets import find_preset
from histill.tiles.manifest import Manifest
from histill.tiles.slide_identity import fingerprint_source
from histill.tiles.slide_records import SlideRecord, read_slides

if TYPE_CHECKING:
    import torch

SUFFIX = ".h5"
_SAME_PX = 0.5  # between the side of a patch, which TRIDENT rounds, and that of a tile
_WITHIN = 65504.0  # of float16, as which embeddings are cached
_REMEDY = "extract the features again with TRIDENT"


@dataclass(frozen=True)
class Patches:
    """The features of one slide. Pixels are those of level 0."""

    uri: str
    features: np.ndarray  # float32 [N, D]
    corners: np.ndarray  # int64 [N, 2]: x, y
    side: float  # of a patch
    extent: tuple[int, int] | None  # width and height of the slide; None: not on record
    rows: Mapping[tuple[int, int], int]  # by corner


@dataclass(frozen=True)
class SlideFeatures:
    """Features in a folder, as if a teacher had answered with them. It is asked of tiles by name, never of pixels."""

    folder: str
    storage: Storage
    outputs: OutputSpec
    digest: str
    license: License | None
    mpp: None = None  # the side of the patches says it, slide by slide
    features: None = None
    _read: dict[str, Patches] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, config: FeaturesTeacher, storage: Storage) -> "SlideFeatures":
        """The features in the folder of `config`, of which one file is read.

        Its digest is of the names of the files, and of what changes when one is replaced (size and time, or ETag).
        Raises InputError when there are none, or the preset's are of another width.
        """
        names = sorted(name for name in list_sizes(config.folder, storage) if name.endswith(SUFFIX))
        if not names:
            raise InputError(
                f"features {config.folder} hold no {SUFFIX} file; name the folder in which TRIDENT wrote one for each "
                "slide.",
                code="features-missing",
            )
        preset = None if config.preset is None else find_preset(config.preset)
        width = _width(config.folder, names, storage)
        if preset is not None and preset.width != width:
            raise InputError(
                f"features {config.folder} have a width of {width}, and preset {config.preset} has {preset.width}; "
                "name the encoder that made them, or leave teacher.features.preset out.",
                code="weights-do-not-fit",
            )
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\0{fingerprint_source(join(config.folder, name), storage)}\n".encode())
        terms = config.license or (preset.license if preset else None)
        return cls(config.folder, storage, OutputSpec("encoder", (), width=width), digest.hexdigest(), terms)

    def sees(self, side_px: int) -> int:
        """It is shown nothing, and takes whole tiles of any side."""
        return side_px

    def respond(self, tiles: "torch.Tensor") -> "torch.Tensor":
        raise InputError(
            f"features {self.folder} are of tiles that were seen before, and answer no pixels; cache them with "
            "histill cache (one upright view), and name the cache.",
            code="responses-needed",
        )

    def find_embeddings(self, manifest: Manifest, rows: np.ndarray) -> np.ndarray:
        """The features of the tiles in `rows`, int64 [B], of the manifest: float32 [B, D].

        Raises InputError, with the first tile concerned, when they are not there, of another grid, size or slide.
        """
        records = read_slides(manifest, self.storage)
        tiles = manifest.read(["tile_id", "slide", "x", "y"], rows).to_pylist()
        found = np.empty((len(tiles), self.outputs.width or 0), np.float32)
        for slide in dict.fromkeys(tile["slide"] for tile in tiles):
            places = [place for place, tile in enumerate(tiles) if tile["slide"] == slide]
            found[places] = self._find(slide, [tiles[place] for place in places], records[slide])
        return found

    def _find(self, slide: str, tiles: list[dict[str, Any]], record: SlideRecord) -> np.ndarray:
        first = tiles[0]
        patches = self._patches(slide, first["tile_id"])
        uri = patches.uri
        if patches.extent is not None and patches.extent != (record.width, record.height):
            raise InputError(
                f"features {uri} are of a slide of {patches.extent[0]} x {patches.extent[1]} px, and tile "
                f"{first['tile_id']} is of one of {record.width} x {record.height}; extract the features of that "
                "slide.",
                code="features-off-grid",
            )
        if abs(patches.side - record.tile_side) > _SAME_PX:
            raise InputError(
                f"features {uri} are of patches of {patches.side:g} px at level 0, and tile {first['tile_id']} has "
                f"{record.tile_side:g}; cut tiles of the patches' side and resolution.",
                code="features-off-grid",
            )
        missing = [tile for tile in tiles if (tile["x"], tile["y"]) not in patches.rows]
        if missing:
            raise self._misplaced(patches, missing, len(tiles))
        values = patches.features[[patches.rows[tile["x"], tile["y"]] for tile in tiles]]
        unsound = np.flatnonzero(~(np.abs(values) <= _WITHIN).all(1))
        if len(unsound):
            raise InputError(
                f"features {uri} of tile {tiles[unsound[0]]['tile_id']} hold nan, infinity or more than {_WITHIN:g}; "
                f"{_REMEDY}.",
                code="output-not-finite",
            )
        return values

    def _misplaced(self, patches: Patches, missing: list[dict[str, Any]], tiles: int) -> InputError:
        tile, where = missing[0], f"at ({missing[0]['x']}, {missing[0]['y']})"
        if len(missing) < tiles or not len(patches.corners):
            return InputError(
                f"features {patches.uri} lack tile {tile['tile_id']} {where}, and {len(missing)} of {tiles} tiles like "
                "it; extract the features of all tiles, or leave such tiles out by a higher slides.min_tissue.",
                code="features-missing",
            )
        apart = patches.corners - (tile["x"], tile["y"])
        x, y = patches.corners[np.abs(apart).max(1).argmin()]
        return InputError(
            f"features {patches.uri} lie on another grid: tile {tile['tile_id']} begins {where} of level 0, and the "
            f"nearest patch at ({x}, {y}); cut tiles and patches of one grid, from the slide's corner and without "
            "overlap.",
            code="features-off-grid",
        )

    def _patches(self, slide: str, tile: str) -> Patches:
        """Those of one slide; the last one stays in memory, since tiles come slide by slide."""
        if slide not in self._read:
            self._read.clear()
            uri = join(self.folder, f"{slide}{SUFFIX}")
            try:
                patches = read_patches(uri, self.storage)
            except FileNotFoundError:
                raise InputError(
                    f"features {self.folder} have no {slide}{SUFFIX} for tile {tile}; extract the features of that "
                    "slide, or name the folder that has them.",
                    code="features-missing",
                ) from None
            if len(patches.features) and patches.features.shape[1] != self.outputs.width:
                raise InputError(
                    f"features {uri} have a width of {patches.features.shape[1]}, and others of their folder "
                    f"{self.outputs.width}; keep those of each encoder in a folder of their own.",
                    code="features-unreadable",
                )
            self._read[slide] = patches
        return self._read[slide]


def read_patches(uri: str, storage: Storage) -> Patches:
    """The features in the H5 file `uri`. Raises FileNotFoundError, and InputError when it is of another form."""
    import h5py

    data = read_bytes(uri, storage)
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            features, corners = _array(uri, file, "features"), _array(uri, file, "coords")
            about = dict(file["coords"].attrs)
    except (OSError, RuntimeError, ValueError, KeyError):  # whatever the damaged place was
        raise InputError(
            f"features {uri} are no HDF5 file, or were cut short; {_REMEDY}.", code="features-unreadable"
        ) from None
    if features.ndim == 3 and len(features) == 1:
        features = features[0]
    if features.size == 0 and len(corners) == 0:  # of a slide without tissue
        features = features.reshape(0, features.shape[-1])
    if features.ndim != 2 or corners.ndim != 2 or corners.shape[1] != 2 or len(features) != len(corners):
        raise InputError(
            f"features {uri} have the shapes {features.shape} and, for their coords, {corners.shape}; [N, D] and "
            f"[N, 2] were expected, so {_REMEDY}.",
            code="features-unreadable",
        )
    side = about.get("tile_side_level0", about.get("patch_size_level0"))  # the former, exact one if histill wrote it
    if side is None or not np.issubdtype(np.asarray(side).dtype, np.number):
        raise InputError(
            f"features {uri} do not tell patch_size_level0, the side of their patches in pixels of level 0, in the "
            f"attributes of coords; {_REMEDY}.",
            code="features-unreadable",
        )
    extent = [about.get(f"level0_{each}") for each in ("width", "height")]
    known = all(isinstance(each, int | np.integer) for each in extent)
    places = [(int(x), int(y)) for x, y in corners]
    rows = {place: row for row, place in enumerate(places)}
    if len(rows) < len(places):
        twice = next(place for row, place in enumerate(places) if rows[place] != row)
        raise InputError(
            f"features {uri} have two rows for the patch at {twice}; {_REMEDY}.", code="features-unreadable"
        )
    return Patches(
        uri,
        features.astype(np.float32),
        corners.astype(np.int64).reshape(-1, 2),
        float(side),
        (int(extent[0]), int(extent[1])) if known else None,  # type: ignore[arg-type]
        rows,
    )


def _array(uri: str, file: Any, name: str) -> np.ndarray:
    """A data set that lies in the file itself: HDF5 can also name any other file of the machine, which is not read."""
    import h5py

    linked = name in file and not isinstance(file.get(name, getlink=True), h5py.HardLink)
    found = None if linked else file.get(name)
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise InputError(
            f"features {uri} have no data set {name!r} of their own; {_REMEDY}.", code="features-unreadable"
        )
    if not np.issubdtype(found.dtype, np.number):
        raise InputError(
            f"features {uri} have {name} of the type {found.dtype}, not numbers; {_REMEDY}.", code="features-unreadable"
        )
    return np.asarray(found[()])


def _width(folder: str, names: list[str], storage: Storage) -> int:
    """That of the first file that has any features."""
    for name in names:
        patches = read_patches(join(folder, name), storage)
        if len(patches.features):
            return int(patches.features.shape[1])
    raise InputError(f"features {folder} hold none in any of {len(names)} files; {_REMEDY}.", code="features-missing")


def load_teacher(config: FeaturesTeacher, _tile_mpp: float, storage: Storage, *, gpu: bool = False) -> SlideFeatures:
    """`SlideFeatures.load`; there is nothing that a GPU could do."""
    return SlideFeatures.load(config, storage)
