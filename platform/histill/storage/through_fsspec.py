"""pyarrow's view of a file system of fsspec's, for kinds of storage that pyarrow has no client for."""

from typing import Any

import pyarrow as pa
from pyarrow import fs


class FsspecHandler(fs.FSSpecHandler):
    """As pyarrow's, which first asks `isfile`, to which fsspec says no whatever fails: refused credentials, a reset."""

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")

    def open_input_stream(self, path: str) -> Any:
        return self.open_input_file(path)
