"""The encoded rows of a table that was read, as slices of its memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class EncodedRow:
    """The bytes of one entry; slices of its row group's table, not copies."""

    image: memoryview | None  # None: decoded already
    pixels: memoryview | None  # of the whole tile, at the side of the larger view
    mask: memoryview | None
    response: memoryview | None
    map: memoryview | None


def encoded_rows(table: pa.Table) -> Iterator[tuple[int, EncodedRow]]:
    """Each entry of `table` with its bytes."""
    columns = [_encoded(table, name) for name in ("image", "pixels", "mask", "response", "map")]
    return zip(table["entry"].to_pylist(), map(EncodedRow, *columns), strict=True)


def _encoded(table: pa.Table, name: str) -> Iterable[memoryview | None]:
    """The bytes of each row of a binary column, None where there are none.

    Slices of Arrow's own buffer: a scalar for each row would cost a twentieth of decoding it.
    """
    if name not in table.column_names:
        return repeat(None, table.num_rows)
    column = table[name].chunk(0) if table[name].num_chunks == 1 else table[name].combine_chunks()
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].tolist()
    content = memoryview(data or b"").cast("B")
    rows: list[memoryview | None] = [content[start:end] for start, end in pairwise(ends)]
    if column.null_count:
        for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
            rows[row] = None
    return rows
