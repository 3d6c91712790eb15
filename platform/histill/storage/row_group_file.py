"""A row group as a Parquet file of its own: its bytes, followed by a footer that describes nothing else.

So a row group is read without the footer of its shard, from where its columns begin and how long they are. The footer
is Thrift's compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md) of the
structures in https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift; the numbers below are
theirs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_BYTE_ARRAY, _REQUIRED, _OPTIONAL, _UTF8 = 6, 0, 1, 0
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12  # types of the protocol
_PLAIN, _RLE = 0, 3
_UNCOMPRESSED = 0


@dataclass(frozen=True)
class Column:
    """A column of strings or bytes."""

    name: str
    text: bool
    nullable: bool


@dataclass(frozen=True)
class Chunk:
    """The bytes of one column of one row group; `start` counts from the first byte that is at hand."""

    column: Column
    start: int
    length: int


def describe_columns(footer: pq.FileMetaData) -> tuple[Column, ...] | None:
    """The columns of a shard; None unless they are plain, uncompressed and adjacent, as histill writes them."""
    fields = list(footer.schema.to_arrow_schema())
    for group in range(footer.num_row_groups):
        end = None
        for number, field in enumerate(fields):
            chunk = footer.row_group(group).column(number)
            if field.type not in (pa.string(), pa.binary()) or chunk.compression != "UNCOMPRESSED":
                return None
            if chunk.has_dictionary_page or end not in (None, chunk.data_page_offset):
                return None
            end = chunk.data_page_offset + chunk.total_compressed_size
    return tuple(Column(field.name, field.type == pa.string(), field.nullable) for field in fields)


def read_row_group(data: pa.Buffer, rows: int, chunks: Sequence[Chunk], *, checked: bool) -> pa.Table:
    """The columns of one row group of `rows` rows from `data`, which holds their bytes.

    With `checked`, checksums of pages are verified. Raises ArrowInvalid or OSError when the bytes are others.
    """
    footer = _footer(rows, chunks)
    tail = footer + len(footer).to_bytes(4, "little") + _MAGIC
    file = pq.ParquetFile(pa.BufferReader(data), metadata=parse_footer(tail), page_checksum_verification=checked)
    return file.read_row_group(0, use_threads=False)


def parse_footer(tail: bytes) -> pq.FileMetaData:
    """The footer of a file, given some of its last bytes. Raises ArrowInvalid when they are too few."""
    return pq.read_metadata(pa.BufferReader(_MAGIC + tail))


def _footer(rows: int, chunks: Sequence[Chunk]) -> bytes:
    root = _struct([(4, _BINARY, b"schema"), (5, _I32, len(chunks))])
    group = _struct(
        [
            (1, _LIST, _list(_STRUCT, [_chunk(rows, chunk) for chunk in chunks])),
            (2, _I64, sum(chunk.length for chunk in chunks)),
            (3, _I64, rows),
        ]
    )
    schema = _list(_STRUCT, [root, *(_element(chunk.column) for chunk in chunks)])
    return _struct([(1, _I32, 1), (2, _LIST, schema), (3, _I64, rows), (4, _LIST, _list(_STRUCT, [group]))])


def _element(column: Column) -> bytes:
    kind = [(6, _I32, _UTF8)] if column.text else []
    repetition = _OPTIONAL if column.nullable else _REQUIRED
    return _struct([(1, _I32, _BYTE_ARRAY), (3, _I32, repetition), (4, _BINARY, column.name.encode()), *kind])


def _chunk(rows: int, of: Chunk) -> bytes:
    name = of.column.name.encode()
    meta = _struct(
        [
            (1, _I32, _BYTE_ARRAY),
            (2, _LIST, _list(_I32, [_zigzag(_PLAIN), _zigzag(_RLE)])),
            (3, _LIST, _list(_BINARY, [_varint(len(name)) + name])),
            (4, _I32, _UNCOMPRESSED),
            (5, _I64, rows),
            (6, _I64, of.length),
            (7, _I64, of.length),
            (9, _I64, of.start),
        ]
    )
    return _struct([(2, _I64, of.start), (3, _STRUCT, meta)])


def _struct(fields: Iterable[tuple[int, int, int | bytes]]) -> bytes:
    """A struct of fields (number, type, value), by ascending numbers that differ by less than 16."""
    out, before = bytearray(), 0
    for number, kind, value in fields:
        out.append((number - before) << 4 | kind)
        before = number
        if isinstance(value, int):
            out += _zigzag(value)
        else:
            out += _varint(len(value)) + value if kind == _BINARY else value
    return bytes(out) + b"\0"


def _list(kind: int, items: Iterable[bytes]) -> bytes:
    values = list(items)
    head = bytes([len(values) << 4 | kind]) if len(values) < 15 else bytes([0xF0 | kind]) + _varint(len(values))
    return head + b"".join(values)


def _zigzag(value: int) -> bytes:
    return _varint(value << 1)  # no value here is negative


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
