"""Microns per pixel, as recorded in several places of a slide, or as declared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from histill.config.common import Storage
from histill.errors import InputError
from histill.tiles.slides import SlideRow, open_slide, resolve_mpp

pytestmark = pytest.mark.unit


def write(path: Path, *, tags: tuple[float, str] | None = None, ome: dict[str, Any] | None = None) -> str:
    """A slide with a resolution (pixels per unit, unit) in its TIFF tags, and an OME-XML of `ome`."""
    how: dict[str, Any] = {} if tags is None else {"resolution": (tags[0], tags[0]), "resolutionunit": tags[1]}
    if ome is not None:
        attributes = " ".join(f'{key}="{value}"' for key, value in ome.items())
        how["description"] = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" SizeX="16" SizeY="16" PhysicalSizeX="99" PhysicalSizeY="99"/>'
            f'</Image><Image ID="Image:1"><Pixels ID="Pixels:1" SizeX="256" SizeY="256" {attributes}/></Image></OME>'
        ).encode()
    tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), tile=(256, 256), photometric="rgb", metadata=None, **how)
    return str(path)


def mpp_of(path: str, declared: float | None = None, fallback: float | None = None) -> float:
    with open_slide(path, Storage()) as slide:
        return resolve_mpp(slide, SlideRow(path, "case", declared), fallback)


def ome(x: float, unit: str | None = None, y: float | None = None) -> dict[str, Any]:
    units = {} if unit is None else {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    return {"PhysicalSizeX": x, "PhysicalSizeY": x if y is None else y, **units}


@pytest.mark.parametrize(
    ("tags", "xml", "expected"),
    [
        ((20_000, "CENTIMETER"), None, 0.5),
        ((50_800, "INCH"), None, 0.5),
        (None, ome(0.5), 0.5),
        (None, ome(0.5, "µm"), 0.5),
        (None, ome(0.5, "\u03bcm"), 0.5),  # Greek mu in place of the micro sign
        (None, ome(500, "nm"), 0.5),
        (None, ome(0.0005, "mm"), 0.5),
        (None, ome(5000, "Å"), 0.5),
        ((72, "INCH"), ome(0.25), 0.25),  # the tags are not about the slide
        ((20_000, "CENTIMETER"), ome(1, "pixel"), 0.5),  # the XML has no physical unit
        ((20_000, "CENTIMETER"), ome(0), 0.5),
        ((20_000, "CENTIMETER"), ome(500, "nm"), 0.5),
    ],
)
def test_records(tmp_path: Path, tags: tuple[float, str] | None, xml: dict[str, Any] | None, expected: float) -> None:
    assert mpp_of(write(tmp_path / "a.tiff", tags=tags, ome=xml)) == pytest.approx(expected)


def test_records_that_contradict_each_other_are_asked_about(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tiff", tags=(40_000, "CENTIMETER"), ome=ome(500, "nm"))
    asked = (
        r"a\.tiff contradicts itself: 0\.25 um/px in its TIFF tags and 0\.5 in its OME-XML; find out "
        r"which is right and state it as slide_mpp"
    )
    for declared, fallback in ((None, None), (0.3, None), (None, 0.3)):
        with pytest.raises(InputError, match=asked):
            mpp_of(path, declared, fallback)
    for right in (0.25, 0.5):
        assert mpp_of(path, declared=right) == pytest.approx(right)
        assert mpp_of(path, fallback=right) == pytest.approx(right)
    assert mpp_of(path, declared=0.5, fallback=0.25) == pytest.approx(0.5)


def test_an_aperio_record_and_tags_that_contradict_each_other(tmp_path: Path) -> None:
    """The result of a tool that halves a slide and keeps its description."""
    path = tmp_path / "a.svs"
    said = "Aperio Image Library v11.2.1 \r\n256x256 (256x256) JPEG/RGB Q=30|AppMag = 20|MPP = 0.25"
    how = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER", "description": said, "metadata": None}
    tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), tile=(256, 256), photometric="rgb", **how)
    with pytest.raises(InputError, match=r"0\.25 um/px in the scanner's record and 0\.5 in its TIFF tags"):
        mpp_of(str(path))


@pytest.mark.parametrize(
    ("tags", "xml"),
    [(None, None), ((20_000, "NONE"), None), ((72, "INCH"), ome(1, "reference frame")), (None, ome(99))],
)
def test_no_record_is_asked_for(tmp_path: Path, tags: tuple[float, str] | None, xml: dict[str, Any] | None) -> None:
    path = write(tmp_path / "a.tiff", tags=tags, ome=xml)
    with pytest.raises(InputError, match="does not record its microns per pixel"):
        mpp_of(path)
    assert mpp_of(path, fallback=0.4) == 0.4


def test_pixels_that_are_not_square_by_the_xml(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tiff", tags=(20_000, "CENTIMETER"), ome=ome(0.5, y=0.6))
    with pytest.raises(InputError, match=r"pixels of 0\.5 x 0\.6 um by its OME-XML"):
        mpp_of(path)


def test_a_description_that_is_no_xml_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    how = {
        "resolution": (20_000, 20_000),
        "resolutionunit": "CENTIMETER",
        "description": "PhysicalSizeX=3 <",
        "metadata": None,
    }
    tifffile.imwrite(path, np.zeros((256, 256, 3), np.uint8), tile=(256, 256), photometric="rgb", **how)
    assert mpp_of(str(path)) == pytest.approx(0.5)


def test_what_a_slide_declares_for_itself_is_what_it_records(write_slide: Callable[..., str], tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tiff", mpp=0.5)
    with pytest.raises(InputError, match=r"records 0\.5 um/px and the index declares 0\.25"):
        mpp_of(path, declared=0.25)
