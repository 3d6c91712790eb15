"""Configurations of the jobs that judge models: `score_model.py`, `promote_model.py`."""

from pydantic import Field, model_validator

from histill.config.augment import Augment
from histill.config.base import Strict, Uri
from histill.config.common import Name, Split, Storage, Teacher, Tracking, Workers


class HeldOut(Strict):
    """Tiles that no training has seen, and what they are judged against."""

    tiles: Uri = Field(description="folder of the tile set")
    split: Split = Field("test", description="split to score")
    reference: Teacher | None = Field(None, description="judge agreement with this teacher; null: the tile set's masks")
    batch_size: int = Field(16, ge=1, description="tiles at once")
    max_corrupt: int = Field(0, ge=0, description="how many undecodable tiles are left out before the job fails")


class ScoreConfig(Strict):
    """A model folder and the tiles to score it on."""

    model: Uri = Field(
        description="model folder (model.safetensors + model.json), a run's folder, or models:/name@alias"
    )
    held_out: HeldOut
    picture: Uri | None = Field(None, description="PNG of rows tile | reference | model; null: none")
    picture_rows: int = Field(6, ge=1, le=32, description="rows of the picture")
    storage: Storage = Storage()
    tracking: Tracking = Tracking()


class CacheConfig(Strict):
    """A teacher's responses to a whole tile set, written once."""

    tiles: Uri = Field(description="folder of the tile set")
    teacher: Teacher
    output: Uri = Field(description="folder of response caches; each gets a sub-folder named by its content")
    views: int = Field(
        1, ge=1, description="views answered of each tile, of which epochs take turns; 1: the upright whole tile"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the windows and symmetries of several views")
    augment: Augment = Augment(flips=False)
    layer: str | None = Field(
        None,
        description="layer of a network teacher, by timm's name, whose feature map is kept beside each answer, for "
        "distill_student.py; null: none",
    )
    batch_size: int = Field(16, ge=1, description="tiles at once")
    workers: Workers = Workers(count=2)
    storage: Storage = Storage()
    tracking: Tracking = Tracking()  # where a registered teacher is found

    @model_validator(mode="after")
    def _views_of_a_teacher(self) -> "CacheConfig":
        varied = self.augment.flips or self.augment.crop_px is not None
        if self.augment.colours:
            raise ValueError("augment varies colours, but a teacher sees tiles uncoloured; set only flips and crop_px")
        if self.views == 1 and (varied or self.seed):
            raise ValueError(
                "views is 1, the upright whole tile, which knows no seed, augment.flips or augment.crop_px; leave them "
                "out or ask for more views"
            )
        if self.views > 1 and not varied:
            raise ValueError(
                f"views is {self.views}, and without augment.flips or augment.crop_px they would all be alike; set one "
                "of these, or views to 1"
            )
        return self


class Gates(Strict):
    """Conditions that a candidate must meet before it becomes champion."""

    min_dice: float = Field(0.0, ge=0, le=1, description="floor of the mean Dice on the held-out tiles")
    max_regression: float = Field(0.0, ge=0, le=1, description="how far the mean Dice may lie below the champion's")
    max_gmacs: float | None = Field(None, gt=0, description="ceiling of the GMACs of one tile; null: none")
    max_parameters: int | None = Field(None, gt=0, description="ceiling of the parameters; null: none")


class PromoteConfig(Strict):
    """A candidate, the champion's name, and the gates between them."""

    model: Uri = Field(description="the candidate's model folder or run folder")
    registered_name: Name = Field(description="name in the model registry")
    held_out: HeldOut
    gates: Gates = Gates()
    picture_rows: int = Field(6, ge=1, le=32, description="rows of the picture")
    storage: Storage = Storage()
    tracking: Tracking
