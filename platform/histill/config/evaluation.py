"""Configurations of the jobs that judge models: `score_model.py`, `promote_model.py`."""

from pydantic import Field, model_validator

from histill.config.augment import Augment
from histill.config.base import ModelUri, ServerUri, Strict, Uri
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

    model: ModelUri = Field(
        description="model folder (model.safetensors + model.json), a run's folder, or models:/name@alias"
    )
    held_out: HeldOut
    bootstrap_samples: int = Field(1000, ge=0, description="redrawn sets of cases behind the 95 % intervals; 0: none")
    robustness_tiles: int = Field(
        256, ge=0, description="tiles that are scored again in other stains, blurred, compressed, halved; 0: none"
    )
    speed: bool = Field(True, description="measure how fast the model is on this machine, which takes some seconds")
    report: Uri | None = Field(None, description="an .html file for the whole score, which needs no server; null: none")
    picture: Uri | None = Field(None, description="PNG of tiles and what the model says of them; null: none")
    picture_rows: int = Field(6, ge=1, le=32, description="tiles of the picture")
    workers: Workers | None = Field(
        None, description="score on the cluster, in tasks of this size; null: in the job's own process"
    )
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
        if self.augment.colors:
            raise ValueError("augment varies colors, but a teacher sees tiles uncolored; set only flips and crop_px")
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

    floors: dict[str, float] = Field({}, description="least value of a figure, e.g. {dice: 0.6}")
    ceilings: dict[str, float] = Field(
        {}, description="most of a figure or a cost (gmacs, parameters), e.g. {calibration_error: 0.1, gmacs: 6}"
    )
    max_regression: float = Field(
        0.02,
        ge=0,
        le=1,
        description="how far the main figure (dice, balanced_accuracy) may lie below the champion's: the lower end of "
        "the paired 95 % interval over cases must not; 1: they are not compared",
    )
    min_cases: int = Field(
        6,
        ge=6,
        description="least held-out cases on which a champion is replaced; of fewer than 6 there is no 95 % interval",
    )
    max_cost_ratio: float | None = Field(
        0.9,
        gt=0,
        le=1,
        description="a candidate that is not surely better than the champion must cost at most this part of its GMACs; "
        "null: it need be neither",
    )
    max_difference: float = Field(
        0.01, ge=0, description="most that the logits of the exported formats may differ from the model's on real tiles"
    )
    beat_constant: bool = Field(
        True, description="whether the main figure must be above that of the best answer that is the same for all tiles"
    )
    refuse_unknown: bool = Field(
        False,
        description="refuse a candidate when it is not known whether something that taught it has seen the held-out "
        "tiles; false: warn",
    )
    bootstrap_samples: int = Field(1000, ge=100, description="sets of cases that are drawn behind the intervals")


class PromoteConfig(Strict):
    """A candidate, the champion's name, and the gates between them; or the way back to the former champion."""

    model: ModelUri | None = Field(None, description="the candidate's model folder, run folder, or models:/name/3")
    registered_name: Name = Field(description="name in the model registry")
    held_out: HeldOut | None = None
    gates: Gates = Gates()
    dry_run: bool = Field(False, description="score and judge, and change nothing")
    rollback: bool = Field(False, description="make the former champion the champion again; needs no model")
    rollback_from: int | None = Field(
        None, ge=1, description="the version to go back from, so that the command may be given again; null: any"
    )
    copy_to: ServerUri | None = Field(
        None, description="tracking server of production, into whose registry the champion is copied; null: none"
    )
    license: str | None = Field(None, description="license of the weights, for the model card, e.g. CC-BY-NC-4.0")
    picture_rows: int = Field(6, ge=1, le=32, description="tiles of the picture")
    workers: Workers | None = Field(
        None, description="score the candidate on the cluster, in tasks of this size; null: in the job's own process"
    )
    storage: Storage = Storage()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _one_way(self) -> "PromoteConfig":
        if self.rollback and (self.model is not None or self.dry_run):
            raise ValueError("rollback names no model and is no dry_run; leave them out")
        if self.rollback_from is not None and not self.rollback:
            raise ValueError("rollback_from is of a rollback; set rollback=true, or leave it out")
        if not self.rollback and (self.model is None or self.held_out is None):
            raise ValueError("a candidate needs model=<folder> and held_out.tiles=<folder>; or set rollback=true")
        return self
