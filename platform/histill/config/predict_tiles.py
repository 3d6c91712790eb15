"""Configurations of predicting and of embedding tiles."""

from typing import Literal

from pydantic import Field, model_validator

from histill.config.base import ModelUri, Strict, Uri
from histill.config.common import Split, Storage, Tracking, Workers


class PredictConfig(Strict):
    """A model to run over a tile set, or over slides, which are cut like the model's tiles."""

    model: ModelUri = Field(
        description="model folder, a finished run's folder, or models:/name@champion, which is copied to `output`"
    )
    tiles: Uri | None = Field(None, description="folder of a tile set")
    slides: tuple[Uri, ...] = Field((), description="slide files instead, local or s3://; their tiles go to `output`")
    slide_mpp: float | None = Field(None, gt=0, description="microns per pixel of slides that do not record it")
    min_tissue: float = Field(0.25, ge=0, le=1, description="smallest tissue fraction of a slide's tile to predict")
    split: Split | None = Field(None, description="split of the tile set to predict; null: every tile")
    output: Uri = Field(description="folder of predictions; each model and tile set gets a sub-folder")
    masks: bool = Field(False, description="save a segmenter's pixel decisions, one PNG per tile")
    embeddings: bool = Field(
        False,
        description="save each tile's embedding in a column, and each slide's in an HDF5 file as TRIDENT writes it; "
        "always true for encoders, which have no other outputs",
    )
    heatmaps: bool = Field(True, description="draw each slide as PNG, and as GeoJSON for QuPath")
    batch_size: int = Field(32, ge=1, description="tiles per batch")
    max_corrupt: int = Field(0, ge=0, description="number of undecodable tiles to leave out before the job fails")
    workers: Workers = Workers(count=2)
    storage: Storage = Storage()
    tracking: Tracking = Tracking()  # registry of a registered model

    @model_validator(mode="after")
    def _one_source(self) -> "PredictConfig":
        if (self.tiles is None) == (not self.slides):
            raise ValueError("set exactly one of tiles=<folder> and slides=[<file>, ...]")
        if self.slides and self.split is not None:
            raise ValueError("split is of a tile set; leave it out for slides")
        for key in ("slide_mpp", "min_tissue"):
            if self.tiles is not None and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for cutting slides; leave it out for a tile set")
        return self


class EmbedConfig(PredictConfig):
    """A model to embed a tile set, or slides, with."""

    embeddings: Literal[True] = Field(True, description="what this verb is for")
    heatmaps: bool = Field(False, description="draw each slide's predictions as well, as PNG and GeoJSON")
