"""Nuclei from the answers of HoVer-Net (Graham et al., Medical Image Analysis 58:101563, 2019, arXiv 1812.06499).

The network tells the distance of each pixel to the center of its nucleus, horizontally and vertically, from -1 at the
one edge to 1 at the other. From one nucleus to the next it falls back, which makes the steepest descents the borders
(section 3.2).
"""

import numpy as np

_NUCLEUS = 0.5  # h of the paper: probability from which a pixel is a nucleus
_BORDER = 0.4  # k of the paper: steepness, scaled to 0..1, from which it is no marker
_SOBEL_PX = 21  # at 0.25 um/px
_LEAST_PX = 5  # diameter of a marker


def separate_hovernet(nucleus: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The nuclei, int32 [H, W], numbered from 1.

    Args:
        nucleus: float [H, W], probability of a nucleus.
        distances: float [2, H, W], horizontal and vertical.
    """
    import cv2
    from scipy.ndimage import binary_fill_holes
    from skimage.measure import label
    from skimage.segmentation import watershed

    foreground = nucleus >= _NUCLEUS
    if not foreground.any():
        return np.zeros(nucleus.shape, np.int32)
    horizontal, vertical = (_scale(each.astype(np.float64)) for each in distances)
    across = cv2.Sobel(horizontal, cv2.CV_64F, 1, 0, ksize=_SOBEL_PX)
    down = cv2.Sobel(vertical, cv2.CV_64F, 0, 1, ksize=_SOBEL_PX)
    border = np.maximum(1 - _scale(across), 1 - _scale(down))
    inside = binary_fill_holes(foreground & (border < _BORDER)).astype(np.uint8)
    opened = cv2.morphologyEx(
        inside, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_LEAST_PX, _LEAST_PX))
    )
    markers = label(opened, connectivity=1)
    energy = cv2.GaussianBlur(np.where(foreground, 1 - border, 0.0), (3, 3), 0)
    labels: np.ndarray = watershed(-energy, markers, mask=foreground)
    return labels.astype(np.int32)


def _scale(values: np.ndarray) -> np.ndarray:
    """To 0..1, from the lowest to the highest."""
    lowest, highest = values.min(), values.max()
    scaled: np.ndarray = (values - lowest) / max(highest - lowest, 1e-12)
    return scaled
