"""A nuclei teacher without training: hematoxylin by color deconvolution, smoothed and thresholded."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch

from histill.config.common import Storage
from histill.outputs import OutputSpec

# Physical sizes, so that the teacher behaves the same at any resolution.
_SMOOTHING_UM = 0.6
_SMALLEST_NUCLEUS_UM2 = 12.0
# Hematoxylin optical densities (scikit-image's HED basis). Below the floor nothing is a nucleus, however dark it is
# relative to its tile: without a floor, the threshold of an empty tile would find nuclei in noise.
_FLOOR_OD = 0.05
_SOFTNESS_OD = 0.012
_VERSION = "classical-1"


@dataclass(frozen=True)
class ClassicalTeacher:
    """Nuclei from the hematoxylin density, after Ruifrok & Johnston (2001), with Otsu's threshold per tile.

    A pixel's logit is its distance from the threshold in units of 0.012 optical density; specks smaller than 12 um2
    are assigned to the background.
    """

    mpp: float | None
    outputs: OutputSpec = field(default=OutputSpec("segmentation", ("background", "nucleus")), init=False)
    digest: str = field(init=False)
    features: None = field(default=None, init=False)
    license: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        constants = (_VERSION, _SMOOTHING_UM, _SMALLEST_NUCLEUS_UM2, _FLOOR_OD, _SOFTNESS_OD, self.mpp)
        object.__setattr__(self, "digest", hashlib.sha256(repr(constants).encode()).hexdigest())

    def sees(self, side_px: int) -> int:
        """The side unchanged: it works at any resolution."""
        return side_px

    def respond(self, tiles: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [B, 2, H, W], for tiles, uint8 [B, 3, H, W]."""
        images = tiles.cpu().permute(0, 2, 3, 1).numpy()
        nuclei = torch.from_numpy(np.stack([self._nuclei(image) for image in images]))
        return torch.stack([torch.zeros_like(nuclei), nuclei], dim=1)

    def _nuclei(self, image: np.ndarray) -> np.ndarray:
        """Nucleus logits, float32 [H, W], for one RGB tile, uint8 [H, W, 3]."""
        from skimage.color import rgb2hed
        from skimage.filters import gaussian, threshold_otsu
        from skimage.morphology import remove_small_objects

        mpp = self.mpp or 0.5
        density = gaussian(rgb2hed(image)[..., 0], sigma=_SMOOTHING_UM / mpp)
        threshold = max(_FLOOR_OD, float(threshold_otsu(density))) if np.ptp(density) > 0 else _FLOOR_OD
        logits = (density - threshold) / _SOFTNESS_OD
        specks = logits > 0
        specks &= ~remove_small_objects(specks, max_size=int(_SMALLEST_NUCLEUS_UM2 / mpp**2))
        return np.where(specks, -np.abs(logits), logits).clip(-8, 8).astype(np.float32)


def load_teacher(_value: bool, tile_mpp: float, _storage: Storage, *, gpu: bool = False) -> ClassicalTeacher:
    """Make the teacher for tiles at `tile_mpp`; nothing is loaded, and it always runs on the CPU."""
    return ClassicalTeacher(tile_mpp)
