"""Configurations of predicting and of embedding tiles."""

from typing import Literal

from pydantic import Field, model_validator

from histill.config.base import ModelUri, Strict, Uri
from histill.config.common import Split, Storage, Tracking, Workers
from histill.config.engine import ON_CPUS, EngineOption
from histill.config.objects import Objects


class PredictConfig(Strict):
    """A model to run over a tile set, or over slides, which are cut like the model's tiles."""

    model: ModelUri = Field(
        description="model folder, a finished run's folder, or models:/name@champion, which is copied to `output`"
    )
    tiles: Uri | None = Field(None, description="folder of a tile set")
    slides: tuple[Uri, ...] = Field(
        (),
        description="slide files instead, local or s3://, cut like the model's tiles while they are predicted",
    )
    keep_tiles: bool = Field(False, description="write the tiles of slides to `output`, as a tile set")
    slide_mpp: float | None = Field(None, gt=0, description="microns per pixel of slides that do not record it")
    min_tissue: float = Field(0.25, ge=0, le=1, description="smallest tissue fraction of a slide's tile to predict")
    overlap_px: int | None = Field(
        None,
        ge=0,
        description="pixels that neighboring tiles of slides share, where each is answered by the tile that sees most "
        "around it; null: an eighth of a tile for objects and overlays, which would show the tiles' edges, else 0",
    )
    regions: tuple[Uri, ...] = Field(
        (),
        description="files with polygons (GeoJSON of QuPath, XML of ASAP), one for each of `slides`, in their order: "
        "only tiles whose center lies in one are predicted; []: all tiles",
    )
    split: Split | None = Field(None, description="split of the tile set to predict; null: every tile")
    output: Uri = Field(description="folder of predictions; each model and tile set gets a sub-folder")
    masks: bool = Field(False, description="save a segmenter's pixel decisions, one PNG per tile")
    embeddings: bool = Field(
        False,
        description="save each tile's embedding in a column, and each slide's in an HDF5 file as TRIDENT writes it; "
        "always true for encoders, which have no other outputs",
    )
    heatmaps: bool = Field(True, description="draw each slide as PNG, and as GeoJSON for QuPath")
    objects: Objects | None = Field(
        None,
        description="write a segmenter's objects, such as nuclei, as QuPath detections, a GeoJSON for each slide; {}: "
        "with the defaults, null: none",
    )
    overlay_mpp: float | None = Field(
        None,
        gt=0,
        description="write a segmenter's probabilities as a pyramidal OME-TIFF for each slide, of about this many "
        "microns per pixel; null: none",
    )
    batch_size: int = Field(32, ge=1, description="tiles per batch")
    max_corrupt: int = Field(0, ge=0, description="number of undecodable tiles to leave out before the job fails")
    engine: EngineOption = "auto"
    workers: Workers = Workers(count=2)
    storage: Storage = Storage()
    tracking: Tracking = Tracking()  # registry of a registered model

    @property
    def keeps_logits(self) -> bool:
        """Whether files of slides are made from a segmenter's pixels."""
        return self.objects is not None or self.overlay_mpp is not None

    def choose_overlap(self, tile_px: int) -> int:
        """The overlap of the tiles of slides, whose side is `tile_px`, in pixels."""
        if self.overlap_px is not None:
            return self.overlap_px
        return tile_px // 8 if self.keeps_logits and self.slides else 0

    @model_validator(mode="after")
    def _one_source(self) -> "PredictConfig":
        if (self.tiles is None) == (not self.slides):
            if "slides" in self.model_fields_set and self.tiles is None:
                raise ValueError("slides names no file; set exactly one of tiles=<folder> and slides=[<file>, ...]")
            raise ValueError("set exactly one of tiles=<folder> and slides=[<file>, ...]")
        if self.slides and self.split is not None:
            raise ValueError("split is of a tile set; leave it out for slides")
        if self.slides and self.regions and len(self.regions) != len(self.slides):
            raise ValueError(
                f"regions are {len(self.regions)} files and slides are {len(self.slides)}; name one for each slide, in "
                "their order"
            )
        for key in ("slide_mpp", "min_tissue", "overlap_px", "keep_tiles", "regions"):
            if self.tiles is not None and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for cutting slides; leave it out for a tile set")
        if self.engine in ON_CPUS and self.workers.gpus:
            raise ValueError(f"engine {self.engine} runs on CPUs; leave it out, or set workers.gpus=0")
        return self


class EmbedConfig(PredictConfig):
    """A model to embed a tile set, or slides, with."""

    embeddings: Literal[True] = Field(True, description="what this verb is for")
    heatmaps: bool = Field(False, description="draw each slide's predictions as well, as PNG and GeoJSON")
