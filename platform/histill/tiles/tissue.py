"""Find tissue on a slide's low-resolution overview."""

import numpy as np

# Stained tissue is colored and glass is not. Otsu's threshold on the chroma (largest minus smallest of R, G,
# B) finds the valley between the two, but it also cuts through a slide that is all glass or all tissue; the
# bounds stop it there: glass has a tint and JPEG noise below the first, stain even of pale eosin lies mostly
# above the second.
CHROMA_BOUNDS = (12.0, 30.0)
DARKEST = 50  # pixels with no channel above it are black pen, scanner border or holes of a mosaic
SMALLEST_PX = 16  # specks and holes up to this area, in pixels of the overview, are closed


def find_tissue(overview: np.ndarray) -> np.ndarray:
    """Find the pixels that show tissue.

    Blue, green and black pen and black borders are excluded; red pen is too similar to eosin to be told from it.

    Args:
        overview: uint8 [H, W, 3], RGB, about 4 to 20 microns per pixel.

    Returns:
        bool [H, W].
    """
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    rgb = gaussian(overview.astype(np.float32), sigma=1, channel_axis=-1, preserve_range=True)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    brightest = rgb.max(axis=-1)
    chroma = brightest - rgb.min(axis=-1)
    # Hematoxylin and eosin both absorb green most; ink that does not is blue or green.
    ink = (green > red + 10) | ((green >= brightest) & (green > blue + 10))
    dark = brightest <= DARKEST
    candidates = chroma[~ink & ~dark]
    if not candidates.size:
        return np.zeros(overview.shape[:2], dtype=bool)
    flat = candidates.max() - candidates.min() < 1e-3
    otsu = float(candidates[0]) if flat else float(threshold_otsu(candidates))
    threshold = float(np.clip(otsu, *CHROMA_BOUNDS))
    tissue = (chroma > threshold) & ~ink & ~dark
    tissue = remove_small_objects(tissue, max_size=SMALLEST_PX)
    closed: np.ndarray = remove_small_holes(tissue, max_size=SMALLEST_PX) & ~ink & ~dark
    return closed
