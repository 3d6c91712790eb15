"""Configuration of `histill ingest`."""

import re
import unicodedata
from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from histill.config.annotations import Annotations
from histill.config.base import Strict, Uri
from histill.config.common import Parts, Split, Storage

_COLUMN = re.compile(r"[^\W\d_][\w -]{0,63}")
_TAKEN = frozenset({
    "tile_id", "slide", "case", "x", "y", "mpp", "size_px", "label", "has_mask", "split", "shard", "row_group", "row",
    "content", "image", "mask",
})  # fmt: skip
"""Columns of manifests and shards."""


def _check_column(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    if _COLUMN.fullmatch(name) is None:
        raise ValueError("up to 64 letters, digits, spaces, - and _ were expected, a letter first; rename it")
    if name in _TAKEN:
        raise ValueError("the tile set has a column of this name; rename that of the index")
    return name


ColumnName = Annotated[str, AfterValidator(_check_column)]
"""A column of an index that a tile set keeps beside its own."""

CaseName = Annotated[str, AfterValidator(lambda name: unicodedata.normalize("NFC", name))]
"""A case in Unicode's composed form (NFC), like the cases of an index."""


class SlideSource(Strict):
    """Whole slides, cut into tiles on a grid at a declared resolution."""

    paths: tuple[Uri, ...] = Field((), description="slide files; each is its own case")
    index: Uri | None = Field(
        None,
        description="CSV with a column `slide` and optionally `case`, `mpp`, `left`, `top`, `right`, `bottom` "
        "(a region, as fractions of the slide such as 0.25 or 1/3), and `annotations`",
    )
    split_within_slide: bool = Field(
        False,
        description="whether regions of one slide that are separate cases, such as the cores of a tissue microarray, "
        "may go to different splits; otherwise one slide in two splits is refused",
    )
    mpp: float | None = Field(None, gt=0, description="microns per pixel of the tiles")
    magnification: float | None = Field(None, gt=0, description="alternative to mpp; 40 means 0.25 um/px, 20 means 0.5")
    slide_mpp: float | None = Field(
        None,
        gt=0,
        description="microns per pixel of slides that do not record it, or record it inconsistently; a "
        "note tells of slides that record another",
    )
    min_tissue: float = Field(0.25, ge=0, le=1, description="smallest tissue fraction of a tile that is kept")
    overlap_px: int = Field(0, ge=0, description="pixels that neighboring tiles share; fewer than half of tile_px")
    jpeg_quality: int = Field(90, ge=50, le=100, description="JPEG quality of the tiles")
    keep_jpeg: bool = Field(
        False,
        description="whether a tile that is exactly one JPEG tile of its slide is kept as it is, without a second "
        "loss; all others are encoded at jpeg_quality",
    )
    icc: Literal["srgb"] | None = Field(
        None,
        description="srgb: the tiles of slides with a color profile are converted to sRGB by it; null: pixels are used "
        "as stored",
    )
    annotations: Annotations | None = Field(
        None,
        description="labels and masks of tiles from polygons: a GeoJSON of QuPath or an XML of ASAP for each slide, "
        "named in the index's column `annotations`; {}: labels by the largest share, null: none",
    )

    _is_of_prediction: bool = PrivateAttr(default=False)
    _is_cut: bool = PrivateAttr(default=True)
    _regions: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _one_of_each(self) -> "SlideSource":
        if bool(self.paths) == (self.index is not None):
            raise ValueError("set exactly one of slides.paths and slides.index")
        if self.paths and self.split_within_slide:
            raise ValueError(
                "split_within_slide is for regions, which slides.index names; leave it out for slides.paths"
            )
        if self.paths and self.annotations is not None:
            raise ValueError("annotations are named by the index; set slides.index instead of slides.paths")
        if (self.mpp is None) == (self.magnification is None):
            raise ValueError("set exactly one of slides.mpp and slides.magnification")
        if self.keep_jpeg and self.icc is not None:
            raise ValueError("keep_jpeg keeps tiles as they are and icc converts them; leave one of the two out")
        return self

    def for_prediction(self, *, cut: bool, regions: tuple[str, ...] = ()) -> "SlideSource":
        """The same for a job that predicts slides, whose keys messages name instead of `slides.*`.

        Unless they are `cut`, the tile set holds the places of the tiles alone. `regions` are files, one for each of
        the paths, whose polygons bound what is cut.
        """
        source = self.model_copy()
        source._is_of_prediction, source._is_cut, source._regions = True, cut, regions
        return source

    @property
    def is_of_prediction(self) -> bool:
        """Whether the slides are cut to be predicted."""
        return self._is_of_prediction

    @property
    def is_cut(self) -> bool:
        """Whether the tiles are written, rather than cut whenever they are read."""
        return self._is_cut

    @property
    def regions(self) -> tuple[str, ...]:
        """Files of polygons that bound what is predicted, one for each of the paths; empty: the whole slides."""
        return self._regions

    @property
    def tile_mpp(self) -> float:
        """Microns per pixel of the tiles; by convention, magnification M is 10 / M um/px."""
        return self.mpp if self.mpp is not None else 10.0 / (self.magnification or 1.0)


class Columns(Strict):
    """Names of the columns of an `index.csv`."""

    image: str = Field("image", description="image path, relative to the index")
    case: str = Field("case", description="patient or case, never divided between splits")
    label: str | None = Field(
        "label",
        description="class name, or several separated by |; an index may lack this column unless it is named here",
    )
    mask: str | None = Field(
        "mask",
        description="mask path (PNG of class indices, or of 0 and 255); an index may lack this column unless it is "
        "named here",
    )


class ImageSource(Strict):
    """A folder of equally sized images with an index."""

    index: Uri = Field(description="CSV naming the images")
    columns: Columns = Columns()
    mpp: float = Field(gt=0, description="microns per pixel of the images")
    mask_values: dict[int, int] | None = Field(
        None,
        description="class (0 to 254) of each value in the masks, 255 for ignored pixels, such as {0: 0, 255: 1} or "
        "{0: 0, 1: 1, 255: 255}; null: determined from all masks together",
    )

    @model_validator(mode="after")
    def _classes_are_bytes(self) -> "ImageSource":
        for value, place in (self.mask_values or {}).items():
            if value < 0 or not 0 <= place <= 255:
                raise ValueError(
                    f"images.mask_values gives the value {value} the class {place}; values are 0 or more, and classes "
                    "0 to 254, or 255 for what is to be ignored"
                )
        if self.mask_values == {}:
            raise ValueError("images.mask_values names no value; name each, or leave it out")
        return self


class SplitRule(Strict):
    """Assigns cases to splits: pinned cases first, the others by a seeded hash of the case's name."""

    train: float = Field(0.8, ge=0, le=1, description="fraction of the cases")
    val: float = Field(0.1, ge=0, le=1, description="fraction of the cases")
    test: float = Field(0.1, ge=0, le=1, description="fraction of the cases")
    seed: int = Field(0, description="seed of the hash")
    pinned: dict[Split, tuple[CaseName, ...]] = Field({}, description="cases put into a split by name")

    @model_validator(mode="after")
    def _whole(self) -> "SplitRule":
        if abs(self.train + self.val + self.test - 1.0) > 1e-6:
            raise ValueError(
                f"train + val + test is {self.train + self.val + self.test:g}; the fractions must add up to 1"
            )
        counts = Counter(case for pinned in self.pinned.values() for case in pinned)
        twice = sorted(case for case, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"case {twice[0]!r} is pinned twice; a case belongs to one split")
        return self


class IngestConfig(Strict):
    """Slides or images in, a tile set (Parquet shards and a manifest) out."""

    output: Uri = Field(description="folder of the tile set, local or s3://")
    tile_px: int = Field(256, ge=32, description="side of the square tiles in pixels")
    slides: SlideSource | None = None
    images: ImageSource | None = None
    keep_columns: tuple[ColumnName, ...] = Field(
        (),
        description="further columns of the index that the tile set keeps, such as [center, scanner], to score models "
        "by (held_out.by)",
    )
    split: SplitRule = SplitRule()
    max_unreadable: int = Field(
        0, ge=0, description="number of unreadable slides or images to skip before the job fails"
    )
    rows_per_shard: int = Field(1024, ge=1, description="tiles per shard file")
    rows_per_group: int = Field(64, ge=1, description="tiles per row group, the unit of one read")
    workers: Parts = Parts()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _one_source(self) -> "IngestConfig":
        if (self.slides is None) == (self.images is None):
            raise ValueError("set exactly one source: slides or images")
        if self.slides is not None and 2 * self.slides.overlap_px >= self.tile_px:
            raise ValueError(
                f"slides.overlap_px {self.slides.overlap_px} is not below half of tile_px {self.tile_px}; lower it"
            )
        if self.keep_columns and self.slides is not None and self.slides.index is None:
            raise ValueError("keep_columns are of an index; name one as slides.index, or leave them out")
        if len(set(self.keep_columns)) < len(self.keep_columns):
            raise ValueError("keep_columns names a column twice; name each once")
        if self.rows_per_group > self.rows_per_shard:
            raise ValueError(
                f"rows_per_group {self.rows_per_group} is above rows_per_shard {self.rows_per_shard}; lower the one or "
                "raise the other"
            )
        return self
