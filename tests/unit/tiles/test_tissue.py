"""Tissue on synthetic overviews."""

import numpy as np
import pytest
from scipy import ndimage

from histill.tiles import tissue
from histill.tiles.tissue import find_tissue

pytestmark = pytest.mark.unit

GLASS, EOSIN, PALE, HEMATOXYLIN = (243, 242, 245), (226, 150, 190), (238, 205, 222), (96, 70, 140)
PENS = {"black": (25, 25, 28), "blue": (40, 70, 190), "green": (40, 150, 80)}


def field(*patches: tuple[tuple[int, int, int], slice, slice], base: tuple[int, int, int] = GLASS) -> np.ndarray:
    rng = np.random.default_rng(0)
    picture = np.full((96, 128, 3), base, dtype=np.float64)
    for color, rows, columns in patches:
        picture[rows, columns] = color
    return np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


def test_tissue_on_glass() -> None:
    rows, columns = slice(20, 70), slice(30, 90)
    mask = find_tissue(field((EOSIN, rows, columns), (HEMATOXYLIN, slice(30, 40), slice(40, 50))))
    truth = np.zeros((96, 128), dtype=bool)
    truth[rows, columns] = True
    assert mask.shape == (96, 128)
    assert mask.dtype == bool
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9


@pytest.mark.parametrize("base", [EOSIN, PALE, HEMATOXYLIN])
def test_a_slide_that_is_all_tissue(base: tuple[int, int, int]) -> None:
    assert find_tissue(field(base=base)).mean() > 0.99
    assert find_tissue(field((HEMATOXYLIN, slice(0, 48), slice(0, 64)), base=EOSIN)).mean() > 0.99


@pytest.mark.parametrize("base", [GLASS, (255, 255, 255), (200, 200, 200), (0, 0, 0)])
def test_a_slide_without_tissue(base: tuple[int, int, int]) -> None:
    assert not find_tissue(field(base=base)).any()
    assert not find_tissue(np.full((8, 8, 3), base, dtype=np.uint8)).any()


@pytest.mark.parametrize("pen", PENS)
def test_pen_is_not_tissue(pen: str) -> None:
    mask = find_tissue(field((EOSIN, slice(10, 40), slice(10, 60)), (PENS[pen], slice(60, 90), slice(70, 120))))
    assert mask[15:35, 15:55].all()
    assert not mask[62:88, 72:118].any()


def test_black_borders_are_not_tissue() -> None:
    mask = find_tissue(field((EOSIN, slice(30, 60), slice(40, 80)), ((2, 2, 2), slice(0, 96), slice(0, 12))))
    assert not mask[:, :10].any()
    assert mask[35:55, 45:75].all()


def test_pale_tissue_beside_dark() -> None:
    mask = find_tissue(field((PALE, slice(10, 80), slice(10, 60)), (HEMATOXYLIN, slice(10, 80), slice(60, 110))))
    assert mask[15:75, 15:105].mean() > 0.98


def test_tissue_does_not_depend_on_the_strips_that_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    blobs = ndimage.gaussian_filter(random.normal(0, 1, (201, 90)), 5) > 0.02
    colors = np.where(blobs[..., None], (200, 90, 170), (243, 241, 244)) + random.normal(0, 9, (201, 90, 3))
    overview = colors.clip(0, 255).astype(np.uint8)
    whole = find_tissue(overview)
    assert 0.2 < whole.mean() < 0.8
    for rows in (1, 50, 200):
        monkeypatch.setattr(tissue, "STRIP_PX", rows)
        np.testing.assert_array_equal(find_tissue(overview), whole)
