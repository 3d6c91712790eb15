"""Find tissue on a slide's low-resolution overview."""

import numpy as np

# Stained tissue is colored and glass is not. Otsu's threshold on the chroma (largest minus smallest of R, G,
# B) finds the valley between the two, but it also cuts through a slide that is all glass or all tissue; the
# bounds stop it there: glass has a tint and JPEG noise below the first, stain even of pale eosin lies mostly
# above the second.
CHROMA_BOUNDS = (12.0, 30.0)
DARKEST = 50  # pixels with no channel above it are black pen, scanner border or holes of a mosaic
STRIP_PX = 512  # rows that are measured at once, since their colors take ten times the memory of the picture
REACH_PX = 8  # rows beyond a strip, more than the blur reaches
SMALLEST_PX = 16  # specks and holes up to this area, in pixels of the overview, are closed


def find_tissue(overview: np.ndarray) -> np.ndarray:
    """Find the pixels that show tissue.

    Blue, green and black pen and black borders are excluded; red pen is too similar to eosin to be told from it.

    Args:
        overview: uint8 [H, W, 3], RGB, about 4 to 20 microns per pixel.

    Returns:
        bool [H, W].
    """
    from skimage.filters import threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    chroma = np.empty(overview.shape[:2], np.float32)
    stained = np.empty(overview.shape[:2], bool)
    for top in range(0, len(overview), STRIP_PX):
        rows = slice(top, top + STRIP_PX)
        chroma[rows], stained[rows] = _measure_colors(overview, top)
    candidates = chroma[stained]
    if not candidates.size:
        return np.zeros(overview.shape[:2], dtype=bool)
    flat = candidates.max() - candidates.min() < 1e-3
    otsu = float(candidates[0]) if flat else float(threshold_otsu(candidates))
    threshold = float(np.clip(otsu, *CHROMA_BOUNDS))
    tissue = (chroma > threshold) & stained
    tissue = remove_small_objects(tissue, max_size=SMALLEST_PX)
    closed: np.ndarray = remove_small_holes(tissue, max_size=SMALLEST_PX) & stained
    return closed


def _measure_colors(overview: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a strip of rows from `top` on: the chroma, float32, and whether a pixel is neither ink nor dark."""
    from skimage.filters import gaussian

    above = min(top, REACH_PX)
    strip = overview[top - above : top + STRIP_PX + REACH_PX].astype(np.float32)
    rgb = gaussian(strip, sigma=1, channel_axis=-1, preserve_range=True)[above : above + STRIP_PX]
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    brightest = rgb.max(axis=-1)
    # Hematoxylin and eosin both absorb green most; ink that does not is blue or green.
    ink = (green > red + 10) | ((green >= brightest) & (green > blue + 10))
    return brightest - rgb.min(axis=-1), ~ink & (brightest > DARKEST)
