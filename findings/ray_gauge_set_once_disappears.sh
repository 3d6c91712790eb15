#!/usr/bin/env bash
# A gauge that is set once is gone from Ray's metrics port 20 to 30 s later, though its process lives and its value still holds.
#
# Versions: Ray 2.60.0.
# Expected: as its class says and as in Prometheus' own clients, a gauge keeps its last value until another is set or its process
#   ends. "Last checkpoint at 12:03" is set when a checkpoint is complete, and an alert asks for its age.
# Seen: a process hands its gauges over every 10 s (RAY_metrics_report_interval_ms) and forgets them; the node's agent drops what
#   was not handed over again for two such periods. A gauge that is set for each epoch or checkpoint is a few points with gaps
#   between them, and `time() - last_checkpoint > 600` finds nothing to compare just when no checkpoint comes any more. A
#   counter of the same process stays.
#   ray#56405 and #56502 began to drop gauges, for the sake of ended processes; #64633 gives each two periods, and #64524 has
#   Ray's own set anew in each. Those of ray.util.metrics are left to users, whom the class tells that the last value is kept.
# Who it hurts: alerts on whatever changes seldom: checkpoints, epochs, the size of a data set, a planned amount of work.
# Way round: set every gauge again from a thread, at least once a period; or raise the period.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "ray[default]==2.60.0" 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
cat >"$work/gauges.py" <<'PY'
import re
import sys
import threading
import time
import urllib.request

import ray
from ray.util.metrics import Counter, Gauge

NAMES = ("set_once", "set_again", "counted_once")


@ray.remote(num_cpus=0)
class Process:
    def __init__(self):
        self.once, self.again, self.counter = Gauge(NAMES[0]), Gauge(NAMES[1]), Counter(NAMES[2])
        self.once.set(0.8)
        self.counter.inc()
        threading.Thread(target=self._set_again, daemon=True).start()

    def _set_again(self):
        while True:
            self.again.set(0.8)
            time.sleep(2)

    def value(self):
        return 0.8


ray.init(num_cpus=1, _node_ip_address="127.0.0.1", logging_level="ERROR", log_to_driver=False)
url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
process = Process.remote()
ray.get(process.value.remote())
begun = time.monotonic()
seen = {name: [] for name in NAMES}
while (now := time.monotonic() - begun) < 60:
    with urllib.request.urlopen(url, timeout=20) as answer:
        lines = answer.read().decode()
    for name in NAMES:
        if re.search(rf"^ray_{name}(_total)?\{{", lines, re.MULTILINE):
            seen[name].append(now)
    time.sleep(1)
alive = ray.get(process.value.remote()) == 0.8
for name, times in seen.items():
    print(f"{name:13} exported from {times[0]:2.0f} s to {times[-1]:2.0f} s" if times else f"{name:13} never exported")
print(f"the process after {now:.0f} s:", "lives" if alive else "has ended")
as_described = (
    alive
    and all(seen.values())
    and seen["set_once"][-1] < 45
    and seen["set_again"][-1] > 50
    and seen["counted_once"][-1] > 50
)
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" "$work/gauges.py" 2>"$work/log" ||
    { status=$?; tail -5 "$work/log"; exit $status; }
