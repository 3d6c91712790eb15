"""The rows of an ingest's parts, laid aside on this machine's disk until all parts are there, in whatever order."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from histill.tiles.parts import Part


class RowStore:
    """The rows of parts, by the names of the parts; `tiles` is how many there are."""

    def __init__(self, folder: str) -> None:
        """`folder`: an empty one."""
        self._folder = Path(folder)
        self.tiles = 0

    def put(self, part: Part) -> Part:
        """Store the rows of `part`; returns it without them."""
        pq.write_table(part.rows, self._path(part), compression="zstd")
        self.tiles += part.rows.num_rows
        return replace(part, rows=part.rows.schema.empty_table())

    def read(self, part: Part) -> pa.Table:
        """The rows of a `part` that was put here."""
        return pq.ParquetFile(self._path(part)).read()

    def _path(self, part: Part) -> Path:
        return self._folder / f"{sha256(part.name.encode()).hexdigest()[:20]}.parquet"
