"""A row group read from its bytes alone is the one that pyarrow reads from the whole file."""

import io
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histill.config.common import Storage
from histill.storage.row_group_file import Chunk, describe_columns, parse_footer, read_row_group
from histill.storage.tables import write_table

pytestmark = pytest.mark.unit

SCHEMA = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        ("image", pa.binary()),
        pa.field("Ä b", pa.binary(), nullable=False),
    ]
)
rows = st.lists(
    st.tuples(st.text(max_size=20), st.none() | st.binary(max_size=3000), st.binary(max_size=300)),
    min_size=1,
    max_size=9,
)


def written(groups: list[pa.Table], schema: pa.Schema) -> bytes:

    with tempfile.TemporaryDirectory() as folder:
        write_table(f"{folder}/shard", groups, schema, Storage())
        return Path(folder, "shard").read_bytes()


def chunks_of(footer: pq.FileMetaData, group: int, names: list[str]) -> tuple[int, int, list[Chunk]]:
    """Where the columns `names` of a row group begin and end, and their chunks."""
    found = []
    for number, column in enumerate(describe_columns(footer) or ()):
        chunk = footer.row_group(group).column(number)
        if column.name in names:
            found.append(Chunk(column, chunk.data_page_offset, chunk.total_compressed_size))
    start = found[0].start
    moved = [Chunk(each.column, each.start - start, each.length) for each in found]
    return start, found[-1].start + found[-1].length, moved


@settings(max_examples=50)
@given(st.lists(rows, min_size=1, max_size=3), st.sampled_from([["tile_id", "image"], ["image"], SCHEMA.names]))
def test_any_row_group_is_read_from_its_bytes(groups: list[list[tuple[object, ...]]], names: list[str]) -> None:
    tables = [
        pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in each], SCHEMA) for each in groups
    ]
    data = written(tables, SCHEMA)
    footer = parse_footer(data[-2000:])
    for number, table in enumerate(tables):
        start, end, chunks = chunks_of(footer, number, names)
        found = read_row_group(pa.py_buffer(data[start:end]), len(table), chunks, checked=True)
        assert found.equals(table.select(names))
        assert found.schema.equals(table.select(names).schema)


def test_other_bytes_are_noticed() -> None:
    table = pa.table({"tile_id": ["a", "b"], "image": [b"1" * 900, b"2"], "Ä b": [b"", b"3"]}, schema=SCHEMA)
    data = written([table], SCHEMA)
    start, end, chunks = chunks_of(parse_footer(data), 0, SCHEMA.names)
    spoilt = bytearray(data[start:end])
    spoilt[400] ^= 1
    with pytest.raises((OSError, pa.ArrowInvalid)):
        read_row_group(pa.py_buffer(bytes(spoilt)), 2, chunks, checked=True)
    with pytest.raises((OSError, pa.ArrowInvalid)):
        read_row_group(pa.py_buffer(data[start + 7 : end]), 2, chunks, checked=False)


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (pa.table({"a": [b"1"]}), {"compression": "zstd"}),
        (pa.table({"a": [b"1"]}), {"compression": "none", "use_dictionary": True}),
        (pa.table({"a": [1]}), {"compression": "none", "use_dictionary": False}),
        (pa.table({"a": [[b"1"]]}), {"compression": "none", "use_dictionary": False}),
    ],
    ids=["compressed", "dictionary", "numbers", "nested"],
)
def test_files_that_are_written_otherwise_are_left_to_their_footers(
    table: pa.Table, options: dict[str, object]
) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    assert describe_columns(pq.read_metadata(sink)) is None
