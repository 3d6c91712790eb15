"""A slide whose scanned area does not begin at the corner of level 0."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile


@pytest.fixture(scope="session")
def write_leica() -> Callable[..., str]:
    """Writes a Leica SCN slide of 4096 x 2048 px at 0.5 um/px of which the scanner took in `pixels` at (left, top)."""

    def write(path: Path, pixels: np.ndarray, left: int, top: int) -> str:
        height, width = pixels.shape[:2]

        def image(name: str, page: int, size: tuple[int, int], extent: tuple[int, ...], power: str) -> str:
            x, y, across, down = (500 * each for each in extent)
            return (
                f'<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01T00:00:00.0Z</creationDate>'
                f'<device model="T" version="1"/><pixels sizeX="{size[0]}" sizeY="{size[1]}">'
                f'<dimension sizeX="{size[0]}" sizeY="{size[1]}" r="0" ifd="{page}"/></pixels>'
                f'<view sizeX="{across}" sizeY="{down}" offsetX="{x}" offsetY="{y}" spacingZ="0"/><scanSettings>'
                f"<objectiveSettings><objective>{power}</objective></objectiveSettings><illuminationSettings>"
                "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
                "</illuminationSettings></scanSettings></image>"
            )

        description = (
            '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c" '
            f'uuid="urn:uuid:1" sizeX="{4096 * 500}" sizeY="{2048 * 500}" barcode="">'
            f"{image('macro', 0, (256, 128), (0, 0, 4096, 2048), '0.6')}"
            f"{image('main', 1, (width, height), (left, top, width, height), '20')}</collection></scn>"
        )
        how: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate", "metadata": None}
        with tifffile.TiffWriter(path, bigtiff=True) as file:
            file.write(np.full((128, 256, 3), 230, np.uint8), description=description, **how)
            file.write(pixels, **how)
        return str(path)

    return write
