"""Adapt an fsspec file system to pyarrow, for schemes that pyarrow has no client for."""

from typing import Any

import pyarrow as pa
from pyarrow import fs


class FsspecHandler(fs.FSSpecHandler):
    """pyarrow's handler without its `isfile` check, which fsspec fails on any error: refused credentials, a reset."""

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)
