#!/usr/bin/env bash
# Through pyarrow's FSSpecHandler every failure to open a file reads as "there is no such file".
#
# Versions: pyarrow 25.0.1, fsspec and s3fs 2026.9.0, Python 3.11. No server is needed: nobody listens where it asks.
# Expected: the error of the storage (connection refused, denied access, 503), as the file system itself raises it.
# Seen: `FSSpecHandler.open_input_file` and `.open_input_stream` ask `isfile` first, and fsspec's `isfile` answers False
#   to every exception. So pyarrow raises FileNotFoundError, without a cause.
# Who it hurts: whoever gives pyarrow, or Ray Train by `storage_filesystem`, a file system of fsspec's: retries that
#   look at the error's type never begin, and code that takes a missing file for "not done yet" does the work again or
#   begins a run anew while a server restarts.
# Way round: a subclass of the handler that opens at once: `pa.PythonFile(self.fs.open(path, "rb"), mode="r")`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==25.0.1 s3fs==2026.9.0 fsspec==2026.9.0 \
    2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }

"$work/venv/bin/python" - <<'PY'
import socket
import sys

import pyarrow as pa
import s3fs
from pyarrow import fs

with socket.socket() as free:  # a port that nobody listens on once it is closed
    free.bind(("127.0.0.1", 0))
    endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
files = s3fs.S3FileSystem(key="key", secret="secret", endpoint_url=endpoint, config_kwargs={"retries": {"max_attempts": 1}})
files.retries = 1


class Direct(fs.FSSpecHandler):
    def open_input_file(self, path):
        return pa.PythonFile(self.fs.open(path, mode="rb"), mode="r")


def kind_of_error(open_file):
    try:
        open_file("bucket/shard.parquet")
    except Exception as error:
        return type(error).__name__
    return "none"


seen = {
    "s3fs": kind_of_error(files.open),
    "pyarrow over s3fs": kind_of_error(fs.PyFileSystem(fs.FSSpecHandler(files)).open_input_file),
    "a handler that opens at once": kind_of_error(fs.PyFileSystem(Direct(files)).open_input_file),
}
for name, error in seen.items():
    print(f"{name:29} {error}")
as_described = seen["pyarrow over s3fs"] == "FileNotFoundError" and all(
    seen[name] not in ("FileNotFoundError", "none") for name in ("s3fs", "a handler that opens at once")
)
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
