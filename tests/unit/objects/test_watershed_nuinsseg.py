"""Nuclei of real tissue: the merged masks of NuInsSeg (Mahbod et al., Scientific Data 11:295, 2024) come apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histill.objects.instances import label_mask
from histill.objects.watershed import separate_objects

pytestmark = pytest.mark.unit

MASKS = Path(__file__).parents[4] / "shared" / "data" / "nuinsseg" / "masks"
MPP = 0.25  # a scan at 40x


def solidity(labels: np.ndarray) -> np.ndarray:
    """The share that each object has of its convex hull, of those of 20 um2 and more."""
    from skimage.measure import regionprops

    return np.array([each.solidity for each in regionprops(labels) if each.area * MPP**2 >= 20])


@pytest.mark.skipif(not MASKS.exists(), reason="the data are not part of the repository")
def test_merged_nuclei_come_apart_into_convex_ones_and_single_ones_stay_whole() -> None:
    before, after, single = [], [], []
    for path in sorted(MASKS.glob("*.png"))[:12]:
        mask = (np.asarray(Image.open(path)) > 0).astype(np.int64)
        certain = np.stack([1 - mask, mask]).astype(np.float32)
        merged, parted = label_mask(mask).labels, separate_objects(certain, boundary=False, mpp=MPP).labels
        np.testing.assert_array_equal(parted > 0, mask > 0)
        before.append(solidity(merged))
        after.append(solidity(parted))
        for number in np.flatnonzero(np.bincount(merged.ravel())[1:] * MPP**2 >= 20) + 1:
            region = merged == number
            if _is_ellipse(region):
                single.append(len(np.unique(parted[region])))
    worst = [float((np.concatenate(each) < 0.85).mean()) for each in (before, after)]
    assert worst[1] < worst[0] / 2
    assert len(np.concatenate(after)) > 1.02 * len(np.concatenate(before))
    assert np.mean(np.array(single) == 1) > 0.97
    assert len(single) > 100


def _is_ellipse(region: np.ndarray) -> bool:
    """Whether a region is convex, as single nuclei are."""
    from skimage.measure import regionprops

    (found,) = regionprops(region.astype(np.uint8))
    return found.solidity > 0.95
