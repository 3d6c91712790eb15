"""The encoded rows of a table, as slices of its memory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat

import pyarrow as pa

from histill.tiles.contents import bytes_of, join_chunks


@dataclass(frozen=True)
class EncodedRow:
    """The bytes of one entry; slices of its row group's table, not copies."""

    image: memoryview | None  # None: already decoded
    pixels: memoryview | None  # of the whole tile, at the side of the larger view
    mask: memoryview | None
    response: memoryview | None
    map: memoryview | None
    embeddings: Mapping[str, memoryview | None] = field(default_factory=dict)  # by the teacher's name
    tokens: Mapping[str, memoryview | None] = field(default_factory=dict)
    views: tuple[memoryview, ...] = ()  # as the network sees them, if another process has decoded them
    fault: str | None = None  # why that process could not
    window_mask: memoryview | None = None  # of `compress_mask`, as the window shows it, if that process has decoded it


def embedding_column(teacher: str) -> str:
    """The column of a table that was read with the embeddings of `teacher`."""
    return f"embedding:{teacher}"


def token_column(teacher: str) -> str:
    """The column with the feature maps of `teacher`."""
    return f"tokens:{teacher}"


def view_column(number: int) -> str:
    """The column with the decoded view number `number`, fixed_size_binary of its pixels."""
    return f"view:{number}"


def list_encoded_rows(table: pa.Table) -> Iterator[tuple[int, EncodedRow]]:
    """Iterate over the entries of `table`, each with its bytes."""
    columns = [bytes_of(table, name) for name in ("image", "pixels", "mask", "response", "map")]
    embeddings, tokens = (_by_teacher(table, name("")) for name in (embedding_column, token_column))
    views = _views(table)
    faults = table["fault"].to_pylist() if "fault" in table.column_names else repeat(None, table.num_rows)
    masks = bytes_of(table, "window_mask")
    rows = map(EncodedRow, *columns, embeddings, tokens, views, faults, masks)
    return zip(table["entry"].to_pylist(), rows, strict=True)


def _views(table: pa.Table) -> Iterable[tuple[memoryview, ...]]:
    names = [name for name in table.column_names if name.startswith(view_column(0)[:-1])]
    return zip(*map(partial(_pixels, table), names), strict=True) if names else repeat((), table.num_rows)


def _pixels(table: pa.Table, name: str) -> list[memoryview]:
    """The rows of a column of fixed size, as slices of its memory."""
    column = join_chunks(table[name])
    size = column.type.byte_width
    content = memoryview(column.buffers()[1]).cast("B")[column.offset * size :]
    return [content[start : start + size] for start in range(0, size * len(column), size)]


def _by_teacher(table: pa.Table, prefix: str) -> Iterable[Mapping[str, memoryview | None]]:
    """Of each row the bytes in the columns that begin with `prefix`, by what follows it."""
    names = [name for name in table.column_names if name.startswith(prefix)]
    if not names:
        return repeat({}, table.num_rows)
    columns = [bytes_of(table, name) for name in names]
    teachers = [name.removeprefix(prefix) for name in names]
    return (dict(zip(teachers, row, strict=True)) for row in zip(*columns, strict=True))
