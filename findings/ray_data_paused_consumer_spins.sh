#!/usr/bin/env bash
# While the consumer of a Ray Data stream pauses, the executor's thread takes CPU without doing anything.
#
# Versions: ray 2.60.0.
# Expected: nothing can be done while the consumer pauses and the stream holds as much as it may, so the executor waits.
# Seen: where running tasks have blocks ready that a back-pressure policy does not let in, the wait for tasks comes back at once, since
#   those tasks count as ready, and the executor looks at them again, a thousand times a second and more: about a whole core where one is free.
#   Beside a busy consumer, as a training loop on few cores, it takes the CPU that the consumer needs.
# Who it hurts: training that streams by Ray Data slower than the cluster reads, which is the usual case, on the node of the trainer.
# Way round: a policy of one's own that waits where it returns 0 for an operator.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[data]==2.60.0' 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
RAY_AUTH_MODE=disabled RAY_TMPDIR="$work" "$work/venv/bin/python" - 2>"$work/log" <<'PY' || { status=$?; tail -3 "$work/log"; exit $status; }
import os
import sys
import time

import numpy as np
import ray

TICK = os.sysconf("SC_CLK_TCK")


def yield_blocks(batch):
    for _ in range(400):
        yield {"pixels": np.zeros((4, 1 << 20), np.uint8)}


def seconds_of_threads():
    """CPU seconds of each thread of this process."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            fields = open(f"/proc/self/task/{thread}/stat").read().rpartition(")")[2].split()
        except OSError:
            continue
        found[thread] = (int(fields[11]) + int(fields[12])) / TICK
    return found


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=400 * 2**20)
context = ray.data.DataContext.get_current()
context.target_max_block_size = 4 << 20
context.execution_options.resource_limits = context.execution_options.resource_limits.copy(object_store_memory=100 * 2**20)
tiles = ray.data.range(8, override_num_blocks=8).map_batches(yield_blocks, batch_size=None)
batches = iter(tiles.map_batches(lambda batch: batch, batch_size=None, num_cpus=0.5).iter_batches(batch_size=4))
for _ in range(5):
    next(batches)
time.sleep(5)  # the stream fills up
shares = []
for _ in range(3):
    before, begun = seconds_of_threads(), time.time()
    time.sleep(4)
    after, passed = seconds_of_threads(), time.time() - begun
    shares.append(max((after[thread] - before.get(thread, 0.0)) / passed for thread in after))
    next(batches)
print("cores that one thread took while the consumer slept for 4 s, three times:", [round(share, 2) for share in shares])
as_described = max(shares) > 0.2
print("as described" if as_described else "CHANGED: no longer as described above")
sys.stdout.flush()
ray.shutdown()
os._exit(0 if as_described else 1)
PY
