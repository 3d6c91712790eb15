#!/usr/bin/env bash
# obstore's file system for fsspec writes over a file in spite of pipe_file(..., mode="create"), and says nothing.
#
# Versions: obstore 0.12.1, fsspec 2026.9.0, Python 3.11.
# Expected: fsspec's contract for `pipe_file` and `put_file`: "mode: in 'create' mode, the call will raise
#   FileExistsError if the file exists". fsspec's memory file system does, as do s3fs, gcsfs and adlfs, which leave it
#   to the server by a condition; obstore's own `put(mode="create")` is such a condition as well.
# Seen: `FsspecStore._pipe_file` and `._put_file` take `mode` and do not hand it on: the file is replaced.
# Who it hurts: whoever keeps a lock, a claim or a "was it done?" marker through fsspec and changes to obstore, which
#   it recommends as a replacement: every one of several writers is told that it was the one.
# Way round: `obstore.put(store, key, data, mode="create")`, which raises AlreadyExistsError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1 fsspec==2026.9.0 \
    2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }

"$work/venv/bin/python" - "$work" <<'PY'
import sys

import fsspec
import obstore
from obstore.fsspec import FsspecStore
from obstore.store import LocalStore


def create_over_a_file(files, path):
    files.pipe_file(path, b"first")
    try:
        files.pipe_file(path, b"second", mode="create")
        said = "no error"
    except FileExistsError:
        said = "FileExistsError"
    return said, bytes(files.cat_file(path))


folder = sys.argv[1]
seen = {
    "fsspec's memory": create_over_a_file(fsspec.filesystem("memory"), "/claim"),
    "obstore's file": create_over_a_file(FsspecStore("file"), f"{folder}/claim"),
}
store = LocalStore(folder)
obstore.put(store, "other", b"first")
try:
    obstore.put(store, "other", b"second", mode="create")
    said = "no error"
except obstore.exceptions.AlreadyExistsError:
    said = "AlreadyExistsError"
seen["obstore.put"] = said, bytes(obstore.get(store, "other").bytes())
for name, (said, held) in seen.items():
    print(f"{name:16} create over a file: {said}; it holds {held.decode()!r}")
as_described = seen == {
    "fsspec's memory": ("FileExistsError", b"first"),
    "obstore's file": ("no error", b"second"),
    "obstore.put": ("AlreadyExistsError", b"first"),
}
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
