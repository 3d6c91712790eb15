"""Hash a tile's content, and verify what is read against the manifest.

XXH3 (https://xxhash.com) is no cryptographic hash: it tells damage and mistakes, at the speed of the memory, and not
a forger's tile. Checking a tile costs about a 300th of streaming it (benchmarks/check_contents.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np
import pyarrow as pa
import xxhash

from histill.errors import InputError

_DIGITS = 32


def content_hash(image: bytes | memoryview, mask: bytes | memoryview | None) -> str:
    """32 hex digits, the image's XXH3-128, and 32 more of the mask's where there is one."""
    digits = xxhash.xxh3_128_hexdigest(image)
    return digits + xxhash.xxh3_128_hexdigest(mask) if mask else digits


@dataclass(frozen=True)
class Expected:
    """What the manifest says of tiles that follow each other in a shard."""

    tile_ids: Sequence[str] | pa.Array
    contents: Sequence[str] | pa.Array

    @classmethod
    def of(cls, rows: pa.Table, first: int, count: int) -> "Expected":
        """Of `count` rows of a manifest, from `first` on."""
        part = rows.slice(first, count)
        return cls(part["tile_id"].combine_chunks(), part["content"].combine_chunks())

    def __len__(self) -> int:
        return len(self.contents)

    def part(self, first: int, count: int) -> "Expected":
        """Of `count` of these tiles, from `first` on."""
        return Expected(self.tile_ids[first : first + count], self.contents[first : first + count])

    def lists(self) -> tuple[list[str], list[str]]:
        """Both as plain values."""
        return _listed(self.tile_ids), _listed(self.contents)


def drop_damaged(table: pa.Table, expected: Expected, place: str) -> tuple[pa.Table, bool]:
    """`table` of tiles as they were read, with no byte of those whose content is another; whether all are the same.

    Args:
        table: `tile_id`, `image`, and `mask` if it was read.
        expected: of each of its rows.
        place: names shard and row group for an error.

    Raises:
        InputError: they are other tiles altogether.
    """
    ids, contents = expected.lists()
    if len(table) != len(contents):
        raise InputError(
            f"{place} has {len(table)} tiles and its manifest says {len(contents)}; delete the shard and repeat the "
            "ingest that made it."
        )
    wrong = _differing(table, contents)
    if not wrong:
        return table, True
    for row, found in zip(wrong, table["tile_id"].take(pa.array(wrong)).to_pylist(), strict=True):
        if found != ids[row]:
            raise InputError(
                f"{place} holds tile {found!r} where its manifest says {ids[row]!r}; delete the shard and repeat the "
                "ingest that made it."
            )
    images = table["image"].to_pylist()
    for row in wrong:
        images[row] = b""
    at = table.schema.get_field_index("image")
    return table.set_column(at, table.schema.field(at), pa.array(images, pa.binary())), False


def bytes_of(table: pa.Table, name: str) -> Iterable[memoryview | None]:
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


def _differing(table: pa.Table, contents: list[str]) -> list[int]:
    """The rows whose image or mask is not the one that is meant."""
    digest = xxhash.xxh3_128_hexdigest
    wrong = [
        row
        for row, (image, said) in enumerate(zip(bytes_of(table, "image"), contents, strict=True))
        if digest(image or b"") != said[:_DIGITS]
    ]
    if "mask" in table.column_names:
        wrong += [
            row
            for row, (mask, said) in enumerate(zip(bytes_of(table, "mask"), contents, strict=True))
            if (digest(mask) if mask else "") != said[_DIGITS:]
        ]
    return sorted(set(wrong))


def _listed(values: Sequence[str] | pa.Array) -> list[str]:
    return values.to_pylist() if isinstance(values, pa.Array) else list(values)
