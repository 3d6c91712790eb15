"""Some rows of a manifest, as runs of consecutive ones: a few numbers for each slide, whatever it has of tiles."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_PIECE = 1 << 20  # rows held at a time where all are needed


@dataclass(frozen=True, eq=False)
class RowRuns:
    """Ascending rows of a manifest; position p is the p-th of them. Indexed by positions, it gives rows."""

    firsts: np.ndarray  # int64 [runs]: the first row of each run
    ends: np.ndarray  # int64 [runs]: how many rows there are up to the end of each run

    @classmethod
    def between(cls, firsts: np.ndarray, stops: np.ndarray) -> "RowRuns":
        """The rows `firsts[i]` to `stops[i]` (exclusive, and above it) of every i; adjacent runs are merged."""
        apart = np.flatnonzero(firsts[1:] != stops[:-1])
        firsts = firsts[np.concatenate([[0], apart + 1])] if len(firsts) else firsts
        stops = stops[np.concatenate([apart, [len(stops) - 1]])] if len(stops) else stops
        return cls(firsts.astype(np.int64), np.cumsum(stops - firsts, dtype=np.int64))

    @classmethod
    def of(cls, rows: np.ndarray) -> "RowRuns":
        """The given `rows`, int64, ascending and distinct."""
        return cls.between(rows, rows + 1)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """The rows, int64, at these positions."""
        run = np.searchsorted(self.ends, positions, side="right")
        return self.stops[run] - self.ends[run] + positions

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """All the rows, int64: eight bytes for each."""
        return self[np.arange(len(self))]

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each run, int64."""
        return np.diff(self.ends, prepend=0)

    @property
    def stops(self) -> np.ndarray:
        """The row after each run, int64."""
        return self.firsts + self.lengths

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Whether each of `rows` (int64) is among these."""
        begun, ended = (np.searchsorted(edges, rows, side="right") for edges in (self.firsts, self.stops))
        return np.asarray(begun > ended)

    def pieces(self) -> Iterator[np.ndarray]:
        """All the rows, int64, a million at a time."""
        for start in range(0, len(self), _PIECE):
            yield self[np.arange(start, min(len(self), start + _PIECE))]
