"""Configuration of `histill cache`."""

from pydantic import Field, model_validator

from histill.config.augment import Augment
from histill.config.base import Strict, Uri
from histill.config.common import Storage, Teacher, Tracking, Workers


class CacheConfig(Strict):
    """A teacher's cached responses to a whole tile set."""

    tiles: Uri = Field(description="folder of the tile set")
    teacher: Teacher
    output: Uri = Field(description="folder of response caches; each gets a sub-folder named by its content")
    views: int = Field(
        1, ge=1, description="cached views of each tile, which epochs cycle through; 1: the upright whole tile"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the windows and symmetries of several views")
    augment: Augment = Augment(flips=False)
    layer: str | None = Field(
        None,
        description="layer of a network teacher, by timm's name, whose feature map is cached with each response, for "
        "histill distill; null: none",
    )
    batch_size: int = Field(16, ge=1, description="tiles per batch")
    workers: Workers = Workers(count=2)
    storage: Storage = Storage()
    tracking: Tracking = Tracking()  # registry of a registered teacher

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
