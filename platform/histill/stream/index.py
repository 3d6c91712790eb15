"""Locate the entries of a plan in the storage."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from histill.errors import InputError
from histill.stream.plan import PADDING, count_repeats
from histill.stream.read import ReadRequest
from histill.tiles.manifest import Manifest
from histill.tiles.row_runs import RowRuns
from histill.tiles.tile_rows import TileRows


@dataclass(frozen=True, eq=False)
class SampleIndex:
    """The tiles of a split in storage order, each once or, in a balanced epoch, as often as it is drawn."""

    tiles: RowRuns | np.ndarray  # ascending rows of the manifest, one for each entry; an array (int64) if some repeat
    starts: np.ndarray  # int64 [groups + 1], entry at which each row group starts
    groups: np.ndarray  # int32 [groups], numbers of the row groups within the manifest
    manifest: TileRows

    @classmethod
    def of(cls, manifest: Manifest, split: str, cases: frozenset[str] | None = None) -> "SampleIndex":
        """Index the tiles of `split`, or of some of its `cases`. Raises InputError when there are none."""
        return cls.at(manifest, manifest.select(split, cases))

    @classmethod
    def at(cls, manifest: Manifest, tiles: RowRuns | np.ndarray) -> "SampleIndex":
        """Index the given `tiles` (ascending rows of the manifest, distinct)."""
        runs = tiles if isinstance(tiles, RowRuns) else RowRuns.of(tiles)
        borders = manifest.rows.group_starts
        # Cut the runs at the borders between row groups: the pieces that each group has are its entries.
        first = np.searchsorted(borders, runs.firsts, side="right") - 1
        last = np.searchsorted(borders, runs.stops - 1, side="right") - 1
        pieces = last - first + 1
        run = np.repeat(np.arange(len(pieces), dtype=np.int32), pieces)
        group = np.arange(len(run), dtype=np.int32)
        group += np.repeat((first - np.cumsum(pieces) + pieces).astype(np.int32), pieces)
        length = np.minimum(runs.stops[run], borders[group + 1]) - np.maximum(runs.firsts[run], borders[group])
        new = np.flatnonzero(np.diff(group, prepend=-1))
        starts = np.append(np.cumsum(length) - length, len(runs))[np.append(new, len(group))]
        return cls(runs, starts, group[new], manifest.rows)

    def balanced(self, groups: np.ndarray, *, seed: int, epoch: int) -> "SampleIndex":
        """The entries of an epoch in which each of `groups` (int64 [entries]) has an equal share."""
        copies = count_repeats(groups, seed=seed, epoch=epoch)
        starts = np.concatenate([[0], np.cumsum(copies)])[self.starts]
        kept = np.diff(starts) > 0
        return replace(
            self,
            tiles=np.repeat(np.asarray(self.tiles), copies),
            starts=np.concatenate([starts[:-1][kept], starts[-1:]]),
            groups=self.groups[kept],
        )

    def tiles_of(self, entries: np.ndarray) -> np.ndarray:
        """The rows of the manifest, int64, of `entries`; PADDING stays PADDING."""
        there = entries != PADDING
        return np.where(there, self.tiles[np.where(there, entries, 0)], PADDING)

    def copies_of(self, entries: np.ndarray) -> np.ndarray:
        """The repeat number of each entry among those of its tile, 0 for the first."""
        if isinstance(self.tiles, RowRuns):
            return np.zeros(len(entries), np.int64)
        return entries - np.searchsorted(self.tiles, self.tiles[entries])

    def reads(self, entries: np.ndarray) -> list[ReadRequest]:
        """The requests that read ascending `entries`, one for each row group."""
        groups, first = np.unique(np.searchsorted(self.starts, entries, side="right") - 1, return_index=True)
        return [
            self._read(int(group), part)
            for group, part in zip(self.groups[groups], np.split(entries, first[1:]), strict=bool(len(groups)))
        ]

    def _read(self, group: int, entries: np.ndarray) -> ReadRequest:
        begin, end = self.manifest.group_starts[group : group + 2].tolist()
        columns = (self.manifest.coded[name] for name in ("shard", "row_group"))
        shard, number = (column.take(np.array([begin]))[0].as_py() for column in columns)
        rows, expected = self.manifest.places(self.tiles[entries]), self.manifest.expected(begin, end - begin)
        return ReadRequest(shard, number, rows, entries, expected)


def balance_groups(manifest: Manifest, tiles: RowRuns | np.ndarray, by: str) -> np.ndarray:
    """The group (int64, 0..G-1) of each of `tiles` (int64, rows of the manifest) in the column `by`.

    Raises InputError when a tile has no value there.
    """
    column = manifest.rows.coded[by]
    codes = column.codes_at(np.asarray(tiles))
    empty = int(column.values.is_null().to_numpy(zero_copy_only=False)[codes].sum())
    if empty:
        raise _unbalanced(manifest, by, empty, len(tiles))
    return pa.array(codes).dictionary_encode().indices.to_numpy().astype(np.int64)


def check_balance(manifest: Manifest, split: str, by: str) -> None:
    """Raise InputError, as `balance_groups` does, without holding a number for each tile."""
    found = [(value, count) for (of, value), count in manifest.count("split", by) if of == split]
    empty = sum(count for value, count in found if value is None)
    if empty:
        raise _unbalanced(manifest, by, empty, sum(count for _, count in found))


def _unbalanced(manifest: Manifest, by: str, empty: int, tiles: int) -> InputError:
    return InputError(
        f"{empty} of {tiles} tiles of {manifest.uri} have no {by}; balance by another column, or ingest them with a "
        f"{by}.",
        code="label-missing",
    )
