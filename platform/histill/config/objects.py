"""Options for the objects, such as nuclei, of a segmenter's pixels."""

from pydantic import Field

from histill.config.base import Strict


class Objects(Strict):
    """How pixels become objects."""

    min_um2: float = Field(
        10.0, ge=0, description="smallest area of an object in square microns; smaller ones are left out"
    )
