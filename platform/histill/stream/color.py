"""Color and stain jitter of one tile, as a pure function of its random draws."""

import numpy as np

from histill.config.augment import Augment

DRAWS = 9
"""Number of random draws per tile."""

# Optical densities (base 10) of hematoxylin, eosin and DAB in red, green and blue; Ruifrok & Johnston (2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Level 0 has no logarithm, so half a level is used in its place.
_DENSITY = -np.log10(np.maximum(np.arange(256), 0.5) / 255).astype(np.float32)


def jitter_colors(image: np.ndarray, draws: np.ndarray, augment: Augment) -> np.ndarray:
    """Jitter the stains and colors of `image` (RGB, uint8 [H, W, 3]); `draws` are `DRAWS` numbers in [0, 1)."""
    import cv2

    signed = 2 * draws - 1
    if augment.stain:
        densities = cv2.transform(_DENSITY[image], stain_matrix(signed[:6], augment.stain))
        image = cv2.convertScaleAbs(cv2.exp(densities * np.float32(-np.log(10))), alpha=255)
    if augment.brightness or augment.contrast or augment.saturation:
        image = cv2.transform(image, color_matrix(signed[6:], augment))
    return image


def stain_densities(tiles: np.ndarray) -> np.ndarray:
    """The mean optical density of hematoxylin and of eosin in each tile, float32 [B, 2]; tiles are uint8 [B, 3, H, W].

    Color deconvolution as in Ruifrok & Johnston (2001), applied to the mean, since unmixing is linear.
    """
    basis = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
    densities = np.stack([_DENSITY[tile].mean((1, 2)) for tile in tiles]) if len(tiles) else np.zeros((0, 3))
    return (densities @ np.linalg.inv(basis))[:, :2].astype(np.float32)


def stain_matrix(signed: np.ndarray, stain: float) -> np.ndarray:
    """The affine map, float32 [3, 4], from optical densities to those of the jittered stains.

    The density c of each stain becomes (1 + a) c + b, a and b in [-stain, stain]: the HED jitter of Tellez et al.
    (2018), doi 10.1109/TMI.2018.2820199. `signed` are 6 numbers in [-1, 1): a, then b.
    """
    basis = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
    scale, offset = 1 + stain * signed[:3], stain * signed[3:6]
    linear = np.linalg.inv(basis) @ np.diag(scale) @ basis  # row vectors: density = stains @ basis
    return np.column_stack([linear.T, offset @ basis]).astype(np.float32)


def color_matrix(signed: np.ndarray, augment: Augment) -> np.ndarray:
    """The affine map, float32 [3, 4], of values 0..255: saturation about luma, contrast about mid-gray, brightness.

    `signed` are 3 numbers in [-1, 1), for brightness, contrast and saturation.
    """
    brightness, contrast, saturation = 1 + signed * [augment.brightness, augment.contrast, augment.saturation]
    gray = np.tile(_LUMA, (3, 1))
    linear = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * gray)
    offset = np.full(3, brightness * (1 - contrast) * 127.5)
    return np.column_stack([linear, offset]).astype(np.float32)
