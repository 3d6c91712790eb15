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
_AT_ONCE = 1 << 23
_SHORT = pa.binary(_DIGITS // 2)
_NO_DIGIT = 255
_NUMBERS = np.full(256, _NO_DIGIT, np.uint8)
_NUMBERS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


def content_hash(image: bytes | memoryview, mask: bytes | memoryview | None) -> str:
    """XXH3-128 of the image in 32 hex digits, followed by that of the mask, if there is one."""
    digits = xxhash.xxh3_128_hexdigest(image)
    return digits + xxhash.xxh3_128_hexdigest(mask) if mask else digits


@dataclass(frozen=True)
class Expected:
    """Ids and content hashes of consecutive tiles of a shard, as in the manifest."""

    tile_ids: Sequence[str] | pa.Array
    contents: Sequence[str] | pa.Array  # hex digits; those of an array may be the bytes that the digits stand for

    @classmethod
    def of(cls, rows: pa.Table, first: int, count: int) -> "Expected":
        """Those of `count` rows of a manifest (`tile_id` and `content`), from `first` on."""
        ids, contents = (rows[name].slice(first, count) for name in ("tile_id", "content"))
        return cls(ids.combine_chunks(), contents.combine_chunks())

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
    contents = _listed(expected.contents)
    if len(table) != len(contents):
        raise InputError(
            f"{place} has {len(table)} tiles and its manifest says {len(contents)}; delete the shard and repeat the "
            "ingest that made it.",
            code="tiles-damaged",
        )
    wrong = _differing(table, contents)
    if not wrong:
        return table, True
    ids = _listed(expected.tile_ids)  # not before: it lies on other pages of the manifest
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
    column = join_chunks(table[name])
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].tolist()
    content = memoryview(data or b"").cast("B")
    rows: list[memoryview | None] = [content[start:end] for start, end in pairwise(ends)]
    if column.null_count:
        for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
            rows[row] = None
    return rows


def join_chunks(column: pa.ChunkedArray) -> pa.Array:
    """The values of `column`, without a copy if they are in one piece, of which `combine_chunks` makes one."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


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
    if not isinstance(values, pa.Array):
        return list(values)
    found: list[str] = bytes_to_hex(values).to_pylist()
    return found


def hex_to_bytes(contents: pa.Array, kind: pa.DataType | None = None, *, masks: bool = False) -> pa.Array:
    """Content hashes as the bytes that their hex digits stand for; unchanged if they are anything else.

    Their type is binary(16) if all are of 32 digits and no other tile has `masks`, else binary; or `kind` if that is
    given.
    """
    if kind == contents.type:
        return contents
    _, offsets, data = contents.buffers()
    ends = np.frombuffer(offsets, np.int32)[contents.offset : contents.offset + len(contents) + 1]
    digits = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    numbers = _NUMBERS[digits]
    strange = bool((numbers == _NO_DIGIT).any() or ((ends - ends[0]) % 2).any())
    short = bool((np.diff(ends) == _DIGITS).all())
    if kind is None and strange:
        return contents
    if strange or (kind == _SHORT and not short):
        raise InputError("the contents of some tiles are no hashes; ingest the tiles again.", code="tiles-damaged")
    packed = pa.py_buffer((numbers[::2] << 4 | numbers[1::2]).tobytes())
    if kind == _SHORT or (kind is None and short and not masks):
        return pa.FixedSizeBinaryArray.from_buffers(_SHORT, len(contents), [None, packed])
    halves = pa.py_buffer(((ends - ends[0]) // 2).astype(np.int32).tobytes())
    return pa.BinaryArray.from_buffers(pa.binary(), len(contents), [None, halves, packed])


def bytes_to_hex(contents: pa.Array) -> pa.Array:
    """The inverse of `hex_to_bytes`."""
    if pa.types.is_string(contents.type):
        return contents
    return pa.array([value.hex() for value in contents.to_pylist()], pa.string())


def find_repeated(contents: pa.ChunkedArray) -> np.ndarray:
    """The rows, int64, ascending, whose hash (by its first 8 bytes) occurs more than once; a few million at a time."""
    parts = max(1, len(contents) // _AT_ONCE)
    found = [np.zeros(0, np.int64)]
    for part in range(parts):
        keys, rows, first = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
        for chunk in contents.chunks:
            key = _keys(chunk)
            mine = np.flatnonzero(key % np.uint64(parts) == part)
            keys.append(key[mine])
            rows.append(mine + first)
            first += len(chunk)
        key, row = np.concatenate(keys), np.concatenate(rows)
        order = np.argsort(key, kind="stable")
        same = key[order][1:] == key[order][:-1]
        repeated = np.zeros(len(key), bool)
        repeated[order[1:]] = same
        repeated[order[:-1]] |= same
        found.append(row[repeated])
    return np.sort(np.concatenate(found))


def _keys(contents: pa.Array) -> np.ndarray:
    """The first 8 bytes of each hash, uint64; of what is no hash, the first 8 of its own."""
    if contents.type == _SHORT:
        data = np.frombuffer(contents.buffers()[1], np.uint64)
        keys: np.ndarray = data[2 * contents.offset : 2 * (contents.offset + len(contents)) : 2]
        return keys
    return np.array([xxhash.xxh3_64_intdigest(content or b"") for content in contents.to_pylist()], np.uint64)
