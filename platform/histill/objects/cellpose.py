"""Nuclei from the answers of Cellpose (Stringer et al., Nature Methods 18:100, 2021, doi 10.1038/s41592-020-01018-x).

The network tells for each pixel the direction to the center of its object. Pixels that follow it to the same sink
belong together ("gradient tracking", Methods).
"""

import numpy as np

SCALE = 5.0
"""By which the network's flows are longer than unit vectors."""
_STEPS = 200
_STILL_PX = 0.01  # no pixel moves more than that: they have arrived
_SINK_PX = 10  # a sink has collected more pixels than that
_REACH = 5  # pixels around a sink, of which each holds more than `_FEW`, are of it
_FEW = 2


def separate_cellpose(foreground: np.ndarray, flows: np.ndarray) -> np.ndarray:
    """The objects, int32 [H, W], numbered from 1; foreground that arrives at no sink belongs to none.

    Args:
        foreground: bool [H, W].
        flows: float [2, H, W], along y and x, in pixels for each step.
    """
    from scipy.ndimage import maximum_filter
    from skimage.measure import label

    labels = np.zeros(foreground.shape, np.int32)
    if not foreground.any():
        return labels
    places = np.nonzero(foreground)
    ends = np.rint(_follow(np.stack(places).astype(np.float64), np.where(foreground, flows, 0))).astype(int)
    arrived = np.zeros(foreground.shape, np.int64)
    np.add.at(arrived, tuple(ends), 1)
    sinks = label((arrived == maximum_filter(arrived, 5)) & (arrived > _SINK_PX), connectivity=2)
    for _ in range(_REACH):
        sinks = np.where((sinks == 0) & (arrived > _FEW), maximum_filter(sinks, 3), sinks)
    labels[places] = sinks[tuple(ends)]
    return labels


def _follow(points: np.ndarray, flows: np.ndarray) -> np.ndarray:
    """Where `points`, float64 [2, N] of y and x, arrive by Euler steps along the interpolated flows."""
    from scipy.ndimage import map_coordinates

    limits = np.array(flows.shape[1:])[:, None] - 1
    for _ in range(_STEPS):
        steps = np.stack([map_coordinates(each, points, order=1, mode="nearest") for each in flows])
        points = np.clip(points + steps, 0, limits)
        if np.abs(steps).max() < _STILL_PX:
            break
    return points
