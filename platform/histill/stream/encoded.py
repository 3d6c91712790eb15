"""The encoded rows of a table, as slices of its memory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat

import pyarrow as pa

from histill.tiles.contents import bytes_of


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


def embedding_column(teacher: str) -> str:
    """The column of a table that was read with the embeddings of `teacher`."""
    return f"embedding:{teacher}"


def token_column(teacher: str) -> str:
    """The column with the feature maps of `teacher`."""
    return f"tokens:{teacher}"


def list_encoded_rows(table: pa.Table) -> Iterator[tuple[int, EncodedRow]]:
    """Iterate over the entries of `table`, each with its bytes."""
    columns = [bytes_of(table, name) for name in ("image", "pixels", "mask", "response", "map")]
    embeddings, tokens = (_by_teacher(table, name("")) for name in (embedding_column, token_column))
    return zip(table["entry"].to_pylist(), map(EncodedRow, *columns, embeddings, tokens), strict=True)


def _by_teacher(table: pa.Table, prefix: str) -> Iterable[Mapping[str, memoryview | None]]:
    """Of each row the bytes in the columns that begin with `prefix`, by what follows it."""
    names = [name for name in table.column_names if name.startswith(prefix)]
    if not names:
        return repeat({}, table.num_rows)
    columns = [bytes_of(table, name) for name in names]
    teachers = [name.removeprefix(prefix) for name in names]
    return (dict(zip(teachers, row, strict=True)) for row in zip(*columns, strict=True))
