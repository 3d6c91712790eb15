"""Configuration of augmentation."""

from pydantic import Field

from histill.config.base import Strict


class Augment(Strict):
    """Random augmentations, drawn for each tile and epoch.

    Geometry applies to everything that belongs to a tile. Color applies only to the student's view, so that it learns
    to be invariant to stain, unless `shared_colors`.
    """

    flips: bool = Field(True, description="one of the 8 flips and quarter turns")
    crop_px: int | None = Field(
        None,
        ge=32,
        description="side of a square random crop, in pixels of the tile; null: the whole tile",
    )
    brightness: float = Field(0.0, ge=0, lt=1, description="largest relative change of brightness")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest relative change of contrast about mid-gray")
    saturation: float = Field(0.0, ge=0, lt=1, description="largest relative change of saturation")
    stain: float = Field(
        0.0, ge=0, lt=1, description="largest change of each stain: relative, and as an offset of its density"
    )

    shared_colors: bool = Field(
        False,
        description="apply the same colors to the view of a live teacher, as in the resolution paper; false: only to "
        "the student's",
    )

    @property
    def colors(self) -> bool:
        """Whether there is any color augmentation."""
        return bool(self.brightness or self.contrast or self.saturation or self.stain)
