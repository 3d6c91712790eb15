"""Locate the entries of a plan in the storage."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histill.errors import InputError
from histill.stream.plan import PADDING, count_repeats
from histill.stream.read import ReadRequest
from histill.tiles.contents import Expected
from histill.tiles.manifest import Manifest


@dataclass(frozen=True)
class SampleIndex:
    """The tiles of a split in storage order, each once or, in a balanced epoch, as often as it is drawn."""

    tiles: np.ndarray  # int64 [entries], ascending rows of the manifest
    rows: np.ndarray  # int64 [entries], positions within the row groups
    starts: np.ndarray  # int64 [groups + 1], entry at which each row group starts
    shards: tuple[str, ...]  # of the tile set
    shard: np.ndarray  # int64 [groups], index into `shards`
    row_group: np.ndarray  # int64 [groups]
    manifest: pa.Table | None = None  # tile_id and content, to verify what is read
    bounds: np.ndarray | None = None  # int64 [groups, 2], start and end of its rows in the manifest

    @classmethod
    def of(cls, manifest: Manifest, split: str, cases: frozenset[str] | None = None) -> "SampleIndex":
        """Index the tiles of `split`, or of some of its `cases`. Raises InputError when there are none."""
        return cls.at(manifest, manifest.rows_of(split, cases))

    @classmethod
    def at(cls, manifest: Manifest, tiles: np.ndarray) -> "SampleIndex":
        """Index the given `tiles` (int64, ascending rows of the manifest)."""
        # Dictionary-encode before combining chunks: the names of 70 million tiles exceed the size of one array.
        coded = pc.dictionary_encode(manifest.table["shard"]).unify_dictionaries().combine_chunks()
        shard, row_group, rows = (
            column.to_numpy(zero_copy_only=False).astype(np.int64)
            for column in (coded.indices, manifest.table["row_group"], manifest.table["row"])
        )
        begins = _starts(shard, row_group)
        shard, row_group, rows = shard[tiles], row_group[tiles], rows[tiles]
        starts = _starts(shard, row_group)
        group = np.searchsorted(begins, tiles[starts[:-1]], side="right")
        return cls(
            tiles,
            rows,
            starts,
            tuple(coded.dictionary.to_pylist()),
            shard[starts[:-1]],
            row_group[starts[:-1]],
            manifest.table.select(["tile_id", "content"]),
            np.stack([begins[group - 1], begins[group]], axis=1),
        )

    def balanced(self, groups: np.ndarray, *, seed: int, epoch: int) -> "SampleIndex":
        """The entries of an epoch in which each of `groups` (int64 [entries]) has an equal share."""
        copies = count_repeats(groups, seed=seed, epoch=epoch)
        starts = np.concatenate([[0], np.cumsum(copies)])[self.starts]
        kept = np.diff(starts) > 0
        return SampleIndex(
            np.repeat(self.tiles, copies),
            np.repeat(self.rows, copies),
            np.concatenate([starts[:-1][kept], starts[-1:]]),
            self.shards,
            self.shard[kept],
            self.row_group[kept],
            self.manifest,
            None if self.bounds is None else self.bounds[kept],
        )

    def tiles_of(self, entries: np.ndarray) -> np.ndarray:
        """The rows of the manifest, int64, of `entries`; PADDING stays PADDING."""
        return np.where(entries == PADDING, PADDING, self.tiles[entries])

    def copies_of(self, entries: np.ndarray) -> np.ndarray:
        """The repeat number of each entry among those of its tile, 0 for the first."""
        return entries - np.searchsorted(self.tiles, self.tiles[entries])

    def reads(self, entries: np.ndarray) -> list[ReadRequest]:
        """The requests that read ascending `entries`, one for each row group."""
        groups, first = np.unique(np.searchsorted(self.starts, entries, side="right") - 1, return_index=True)
        return [
            ReadRequest(
                self.shards[self.shard[group]], int(self.row_group[group]), self.rows[part], part, self._expected(group)
            )
            for group, part in zip(groups, np.split(entries, first[1:]), strict=bool(len(groups)))
        ]

    def _expected(self, group: int) -> Expected | None:
        if self.manifest is None or self.bounds is None:
            return None
        first, end = self.bounds[group].tolist()
        return Expected.of(self.manifest, first, end - first)


def _starts(shard: np.ndarray, row_group: np.ndarray) -> np.ndarray:
    """The row at which each row group starts, followed by the number of rows."""
    new = np.flatnonzero((np.diff(shard) != 0) | (np.diff(row_group) != 0)) + 1
    return np.concatenate([[0], new, [len(shard)]])


def balance_groups(manifest: Manifest, tiles: np.ndarray, by: str) -> np.ndarray:
    """The group (int64, 0..G-1) of each of `tiles` (int64, rows of the manifest) in the column `by`.

    Raises InputError when a tile has no value there.
    """
    column = manifest.table[by].take(pa.array(tiles))
    if column.null_count:
        raise InputError(
            f"{column.null_count} of {len(tiles)} tiles of {manifest.uri} have no {by}; balance by another column, or "
            f"ingest them with a {by}.",
            code="label-missing",
        )
    return pc.dictionary_encode(column.combine_chunks()).indices.to_numpy().astype(np.int64)
