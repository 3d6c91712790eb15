"""Hash the content of tiles, and verify what is read against the manifest.

XXH3 (https://xxhash.com) is not a cryptographic hash: at memory speed it detects damage and mistakes, but not forgery.
Checking a tile costs about 1/300 of streaming it (benchmarks/check_contents.py).
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
    """XXH3-128 of the image in 32 hex digits, followed by that of the mask, if there is one."""
    digits = xxhash.xxh3_128_hexdigest(image)
    return digits + xxhash.xxh3_128_hexdigest(mask) if mask else digits


@dataclass(frozen=True)
class Expected:
    """Ids and content hashes of consecutive tiles of a shard, as in the manifest."""

    tile_ids: Sequence[str] | pa.Array
    contents: Sequence[str] | pa.Array

    @classmethod
    def of(cls, rows: pa.Table, first: int, count: int) -> "Expected":
        """Those of `count` rows of a manifest, from `first` on."""
        part = rows.slice(first, count)
        return cls(part["tile_id"].combine_chunks(), part["content"].combine_chunks())

    def __len__(self) -> int:
        return len(self.contents)

    def part(self, first: int, count: int) -> "Expected":
        """Those of `count` of these tiles, from `first` on."""
        return Expected(self.tile_ids[first : first + count], self.contents[first : first + count])

    def lists(self) -> tuple[list[str], list[str]]:
        """Ids and hashes as lists of str."""
        return _listed(self.tile_ids), _listed(self.contents)


def drop_damaged(table: pa.Table, expected: Expected, place: str) -> tuple[pa.Table, bool]:
    """Empty the images of tiles whose content does not match; also return whether all of them match.

    Args:
        table: `tile_id`, `image`, and `mask` if it was read.
        expected: ids and hashes of its rows.
        place: shard and row group, for errors.

    Raises:
        InputError: the table holds other tiles.
    """
    ids, contents = expected.lists()
    if len(table) != len(contents):
        raise InputError(
            f"{place} has {len(table)} tiles and its manifest says {len(contents)}; delete the shard and repeat the "
            "ingest that made it.",
            code="tiles-damaged",
        )
    wrong = _differing(table, contents)
    if not wrong:
        return table, True
    for row, found in zip(wrong, table["tile_id"].take(pa.array(wrong)).to_pylist(), strict=True):
        if found != ids[row]:
            raise InputError(
                f"{place} holds tile {found!r} where its manifest says {ids[row]!r}; delete the shard and repeat the "
                "ingest that made it.",
                code="tiles-damaged",
            )
    images = table["image"].to_pylist()
    for row in wrong:
        images[row] = b""
    at = table.schema.get_field_index("image")
    return table.set_column(at, table.schema.field(at), pa.array(images, pa.binary())), False


def bytes_of(table: pa.Table, name: str) -> Iterable[memoryview | None]:
    """The bytes of each row of a binary column, None for null or if there is no such column.

    They are slices of Arrow's buffer: creating a scalar for each row would cost a twentieth of decoding it.
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
    """The rows whose image or mask does not match `contents`."""
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
