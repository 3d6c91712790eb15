"""What passes between the operators of the graph: a chunk of requests, and what was read for it, in a row each.

Ray Data splits and joins blocks by their size, but never a row: with a target size of one byte every row is a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa

from histill.stream.read import ReadRequest
from histill.tiles.contents import Expected, join_chunks


@dataclass(frozen=True)
class Chunk:
    """Consecutive requests of one pass, which one task reads."""

    stream: str  # name of the stream that is read
    epoch: int
    last: bool  # of its pass
    requests: Sequence[ReadRequest]
    tiles: np.ndarray  # int64 [entries of all requests], rows of the manifest
    copies: np.ndarray  # int64 [entries of all requests], repeat numbers of these tiles

    def to_block(self) -> pa.Table:
        """A table of one row."""
        expected = [read.expected.lists() if read.expected is not None else ([], []) for read in self.requests]
        columns = {
            "shard": [read.shard for read in self.requests],
            "row_group": [read.row_group for read in self.requests],
            "checked": [read.expected is not None for read in self.requests],
            "entries": [len(read.entries) for read in self.requests],
            "expected": [len(ids) for ids, _ in expected],
            "row": _join([read.rows for read in self.requests]),
            "entry": _join([read.entries for read in self.requests]),
            "tile": self.tiles,
            "copy": self.copies,
            "id": [each for ids, _ in expected for each in ids],
            "content": [each for _, contents in expected for each in contents],
        }
        text = {"id": pa.string(), "content": pa.string()}
        lists = {name: _in_one_row(pa.array(values, text.get(name))) for name, values in columns.items()}
        return pa.table({"stream": [self.stream], "epoch": [self.epoch], "last": [self.last], **lists})

    @classmethod
    def from_block(cls, block: pa.Table) -> "Chunk":
        """The inverse of `to_block`."""
        marks = {name: block[name][0].as_py() for name in ("stream", "epoch", "last")}
        whole = {name: block[name].chunk(0).flatten() for name in block.column_names if name not in marks}
        entries, expected = (_bounds(whole[name].to_pylist()) for name in ("entries", "expected"))
        rows, numbers = whole["row"].to_numpy(), whole["entry"].to_numpy()
        ids, contents = whole["id"], whole["content"]
        requests = [
            ReadRequest(
                shard,
                row_group,
                rows[start:end],
                numbers[start:end],
                Expected(ids[first:beyond], contents[first:beyond]) if checked else None,
            )
            for shard, row_group, checked, (start, end), (first, beyond) in zip(
                *(whole[name].to_pylist() for name in ("shard", "row_group", "checked")), entries, expected, strict=True
            )
        ]
        return cls(**marks, requests=requests, tiles=whole["tile"].to_numpy(), copies=whole["copy"].to_numpy())


def pack_rows(table: pa.Table, *, last: bool) -> pa.Table:
    """Put all rows of `table` into one, with the mark of the `last` of a pass."""
    lists = {name: _in_one_row(join_chunks(table[name])) for name in table.column_names}
    return pa.table({"last": [last], **lists})


def unpack_rows(block: pa.Table) -> tuple[pa.Table, bool]:
    """The inverse of `pack_rows`, without a copy."""
    table = pa.table({name: block[name].chunk(0).flatten() for name in block.column_names if name != "last"})
    return table, block["last"][0].as_py()


def _in_one_row(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def _join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def _bounds(lengths: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate(lengths, initial=0)))
