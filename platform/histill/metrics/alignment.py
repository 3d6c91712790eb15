"""Linear CKA: how alike two representations of the same tiles are, whatever their widths and rotations."""

import numpy as np


def linear_cka(count: float, sums: tuple[np.ndarray, np.ndarray], products: tuple[np.ndarray, ...]) -> float:
    """Linear centered kernel alignment, 0..1, from sums over tiles.

    CKA = ||Yc' Xc||_F^2 / (||Xc' Xc||_F ||Yc' Yc||_F) with centered Xc, Yc (Kornblith et al., arXiv 1905.00414,
    section 3). nan where one of the two does not vary.

    Args:
        count: tiles.
        sums: of x, [D], and of y, [E].
        products: sums of x x' [D, D], y y' [E, E] and y x' [E, D], float64.
    """
    x, y = sums
    own = products[0] - np.outer(x, x) / count
    others = products[1] - np.outer(y, y) / count
    cross = products[2] - np.outer(y, x) / count
    spread = np.linalg.norm(own) * np.linalg.norm(others)
    return float(np.square(cross).sum() / spread) if spread > 0 else float("nan")
