"""The encoded rows of a table, as slices of its memory."""

from collections.abc import Iterator
from dataclasses import dataclass

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


def list_encoded_rows(table: pa.Table) -> Iterator[tuple[int, EncodedRow]]:
    """Iterate over the entries of `table`, each with its bytes."""
    columns = [bytes_of(table, name) for name in ("image", "pixels", "mask", "response", "map")]
    return zip(table["entry"].to_pylist(), map(EncodedRow, *columns), strict=True)
