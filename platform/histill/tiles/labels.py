"""The labels of tiles as a classifier learns them, looked up when they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from histill.tiles.coded_column import CodedColumn
from histill.tiles.row_runs import RowRuns


@dataclass(frozen=True, eq=False)
class TileLabels:
    """Each tile's label; indexed by rows of the manifest it is int64 [rows], or [rows, K] of 0 and 1; -1 for none."""

    column: CodedColumn  # the labels' names
    numbers: np.ndarray  # int64 [names] or [names, K]
    hidden: tuple[RowRuns, ...] = ()  # tiles that count as unlabeled

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        there = rows >= 0  # the others are padding
        found = self.numbers[self.column.codes_at(np.where(there, rows, 0))]
        for hidden in self.hidden:
            there = there & ~hidden.has(rows)
        found[~there] = -1
        return found

    def hide(self, rows: RowRuns) -> "TileLabels":
        """The same without the labels of `rows`."""
        return replace(self, hidden=(*self.hidden, rows))

    def count(self, rows: RowRuns, classes: int) -> np.ndarray:
        """How many of `rows` have each class, int64 [classes]; for labels of one class."""
        counts = np.zeros(classes, np.int64)
        for piece in rows.pieces():
            labels = self[piece]
            counts += np.bincount(labels[labels >= 0], minlength=classes)
        return counts


def split_labels(label: str) -> list[str]:
    """Split a combined label at |."""
    return [part.strip() for part in label.split("|") if part.strip()]


def number_labels(names: Sequence[str | None], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The index in `classes` of each of `names`, int64, -1 for others; and which are none of them, bool."""
    place = {name: number for number, name in enumerate(classes)}
    numbers = np.array([-1 if name is None else place.get(name, -1) for name in names], np.int64)
    return numbers, numbers < 0


def number_multi_labels(names: Sequence[str | None], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which of `classes` each of `names` holds, int64 [names, K] of 0 and 1, -1 for none; and which hold others."""
    numbers = np.full((len(names), len(classes)), -1, np.int64)
    wrong = np.ones(len(names), bool)
    for row, name in enumerate(names):
        if name is not None:
            held = split_labels(name)
            numbers[row] = [each in held for each in classes]
            wrong[row] = not set(held) <= set(classes)
    return numbers, wrong
