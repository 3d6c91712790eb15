#!/usr/bin/env bash
# `ParquetFile.iter_batches`, the way to read a large file in little memory, keeps the bytes of all row groups until its end.
#
# Versions: pyarrow 25.0.1; 20.0.0 beside it.
# Expected: reading batch by batch takes the memory of a row group, as it did, and as it is recommended for (apache/arrow#39808 says of it that it
#   frees a batch once it is out of scope, unlike `Dataset.to_batches`).
# Seen: 20.0.0 holds about a row group. 25.0.1 holds all bytes of the chosen columns that it has read so far, until the iterator ends, because
#   `ParquetFile` reads ahead into an unbounded cache now (`pre_buffer=True`), also from a local file.
# Who it hurts: jobs that pass through a manifest or a feature table larger than memory; 1.9 GB for 100 million rows in our case.
# Way round: `ParquetFile(path, pre_buffer=False)`, or `read_row_group` for each group.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/read.py" <<'PY'
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

path, groups, size = sys.argv[1], 24, 4 << 20
random = np.random.default_rng(0)
with pq.ParquetWriter(path, pa.schema([("features", pa.float32())]), compression="none", use_dictionary=False) as writer:
    for _ in range(groups):
        writer.write_table(pa.table({"features": random.random(size // 4, np.float32)}))


def most_held(**how):
    """The most memory that Arrow holds while the file is read batch by batch, as a number of row groups."""
    before, most = pa.total_allocated_bytes(), 0
    for batch in pq.ParquetFile(path, **how).iter_batches(batch_size=size // 4):
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    return most / size


found = most_held(), most_held(pre_buffer=False)
print(f"pyarrow {pa.__version__}, file of {groups} row groups; row groups held at most: {found[0]:.1f}, without pre_buffer {found[1]:.1f}")
held_all = found[0] > groups / 2
sys.exit(0 if held_all == (pa.__version__ == "25.0.1") and found[1] < groups / 4 else 1)
PY
status=0
for version in 20.0.0 25.0.1; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet --disable-pip-version-check "pyarrow==$version" 'numpy>=2' 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
  "$work/$version/bin/python" "$work/read.py" "$work/features.parquet" || status=1
done
[ "$status" = 0 ] && echo "as described" || echo "CHANGED: no longer as described above"
exit "$status"
