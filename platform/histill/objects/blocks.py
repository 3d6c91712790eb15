"""Find the objects of a picture that is too large for the memory, block by block.

Blocks lie on a grid of their own, counted from the picture's corner, so that what is found does not depend on how the
picture was cut into tiles. Each block is read with a margin, and an object belongs to the block that its center of
mass is in. An object that crosses a block's edge and reaches the margin's width or more to one side of it is cut
there: some other block sees only a part of it, and all blocks must decide alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from histill.objects.instances import Instances
from histill.objects.outline import measure_polygon, outline_object

BLOCK_PX = 1024
MARGIN_UM = 32.0  # a nucleus is smaller: 5 to 20 um


@dataclass(frozen=True)
class Object:
    """One object of a picture. Pixels are those of the picture."""

    outline: np.ndarray  # float64 [V, 2]: x, y of the corners of a polygon that is not closed
    class_index: int
    probability: float

    @property
    def area(self) -> float:
        """In square pixels."""
        return measure_polygon(self.outline)


def window_of_block(column: int, row: int, margin: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is read for a block."""
    side = BLOCK_PX + 2 * margin
    return column * BLOCK_PX - margin, row * BLOCK_PX - margin, side, side


def find_in_block(
    separate: Callable[[int, int, int, int], Instances], column: int, row: int, margin: int
) -> Iterator[Object]:
    """The objects of the block in a column and row of the grid.

    `separate(left, top, width, height)` gives the objects of a window of the picture; its labels are connected by the
    pixels' sides.
    """
    from scipy.ndimage import find_objects

    left, top, width, height = window_of_block(column, row, margin)
    found = separate(left, top, width, height)
    ours = _choose(found.labels, len(found.classes), margin)
    for number, place in enumerate(find_objects(ours, max_label=len(found.classes))):
        if place is None:
            continue
        for part in _connected(ours[place] == number + 1):
            corner = np.array([left + place[1].start, top + place[0].start])
            yield Object(outline_object(part) + corner, int(found.classes[number]), float(found.probabilities[number]))


def _choose(labels: np.ndarray, count: int, margin: int) -> np.ndarray:
    """`labels`, int [S, S], without the objects of other blocks, and without what is outside of those cut here."""
    from scipy.ndimage import find_objects

    side = len(labels)
    rows, columns = np.nonzero(labels)
    numbers = labels[rows, columns]
    areas = np.bincount(numbers, minlength=count + 1)
    chosen = areas > 0
    for place in (rows, columns):
        center = np.bincount(numbers, place, count + 1) / np.maximum(areas, 1)
        chosen &= (center >= margin) & (center < side - margin)
    cut = np.zeros(count + 1, bool)
    for number, place in enumerate(find_objects(labels, max_label=count), 1):
        edges = (margin, side - margin)
        cut[number] = place is not None and any(_is_cut(span, edge, margin) for span in place for edge in edges)
    inside = np.zeros(labels.shape, bool)
    inside[margin : side - margin, margin : side - margin] = True
    mine: np.ndarray = np.where(np.where(inside, (chosen | cut)[labels], (chosen & ~cut)[labels]), labels, 0)
    return mine


def _is_cut(span: slice, edge: int, margin: int) -> bool:
    """Whether an object of this extent along one axis is cut at a block's edge."""
    before, after = edge - span.start, span.stop - edge
    return min(before, after) > 0 and max(before, after) >= margin


def _connected(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The connected parts of an object: several only of one that was cut."""
    from skimage.measure import label

    parts, count = label(mask, connectivity=1, return_num=True)
    yield from (parts == number for number in range(1, count + 1))
