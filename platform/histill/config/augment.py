"""How training tiles are varied."""

from pydantic import Field

from histill.config.base import Strict


class Augment(Strict):
    """What is drawn anew for each tile and epoch.

    Geometry is shared by everything that belongs to a tile; color is the student's alone, so that it learns to answer
    the same whatever the stain, unless `shared_colors`.
    """

    flips: bool = Field(True, description="one of the 8 flips and quarter turns")
    crop_px: int | None = Field(
        None,
        ge=32,
        description="side of a square window at a random place, in pixels of the tile; null: the whole tile",
    )
    brightness: float = Field(0.0, ge=0, lt=1, description="largest relative change of brightness")
    contrast: float = Field(0.0, ge=0, lt=1, description="largest relative change of contrast about mid-gray")
    saturation: float = Field(0.0, ge=0, lt=1, description="largest relative change of saturation")
    stain: float = Field(
        0.0, ge=0, lt=1, description="largest change of each stain: relative, and as an offset of its density"
    )

    shared_colors: bool = Field(
        False,
        description="color the view of a teacher that runs beside alike, as the resolution paper does; false: the "
        "student's alone",
    )

    @property
    def colors(self) -> bool:
        """Whether any color is varied."""
        return bool(self.brightness or self.contrast or self.saturation or self.stain)
