#!/usr/bin/env bash
# A gauge that becomes NaN or infinite is missing from Ray's metrics port, or is there, by the version of OpenTelemetry beside Ray.
#
# Versions: Ray 2.60.0 with opentelemetry-sdk 1.45.2 and 1.42.1; Ray asks for 1.30 or newer.
# Expected: NaN and +Inf are values of Prometheus' text format, and Ray's port exports what a gauge was set to, whichever allowed
#   version of a dependency was installed: `train_loss != train_loss` is the usual alert for a run that has diverged.
# Seen: with 1.42.1 the port says NaN and +Inf. With 1.45.2 the SDK in Ray's agent ignores values that are not finite (begun for
#   NaN by opentelemetry-python#5336, so that sums stay clean), and says so in the agent's own log: the series ends as if the
#   run were over. Step, throughput and everything else of the run look healthy.
# Who it hurts: whoever watches training by Ray's metrics: the moment that an alert is for is the one without a value. A new
#   image with the same Ray is enough.
# Way round: export a second gauge, 1 while the loss is finite and 0 otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
install() {
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check "ray[default]==2.60.0" "$@" 2>"$work/pip.log" ||
        { cat "$work/pip.log"; exit 2; }
}
cat >"$work/gauges.py" <<'PY'
import json
import math
import re
import sys
import threading
import time
import urllib.request

import ray
from ray.util.metrics import Gauge

VALUES = {"steady": 1.0, "not_a_number": math.nan, "infinite": math.inf}


@ray.remote(num_cpus=0)
class Run:
    def __init__(self):
        self.gauges = {name: Gauge(name) for name in VALUES}
        self.diverged = False
        threading.Thread(target=self._set, daemon=True).start()

    def _set(self):
        while True:
            for name, gauge in self.gauges.items():
                gauge.set(VALUES[name] if self.diverged else 0.5)
            time.sleep(1)

    def diverge(self):
        self.diverged = True


def scrape(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        lines = answer.read().decode()
    found = {name: re.search(rf"^ray_{name}\{{.*\}} (\S+)$", lines, re.MULTILINE) for name in VALUES}
    return {name: match and match[1] for name, match in found.items()}


ray.init(num_cpus=1, _node_ip_address="127.0.0.1", logging_level="ERROR", log_to_driver=False)
url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
run = Run.remote()
begun = time.monotonic()
while None in (before := scrape(url)).values() and time.monotonic() - begun < 60:
    time.sleep(1)
ray.get(run.diverge.remote())
time.sleep(40)
with open(sys.argv[1], "w") as file:
    json.dump([before, scrape(url)], file)
PY
measure() {
    RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" "$work/gauges.py" "$work/$1.json" 2>"$work/log" ||
        { tail -5 "$work/log"; exit 1; }
}
install opentelemetry-sdk==1.45.2 opentelemetry-exporter-prometheus==0.66b2
measure 1.45.2
install opentelemetry-sdk==1.42.1 opentelemetry-exporter-prometheus==0.63b1
measure 1.42.1
"$work/venv/bin/python" - "$work" <<'PY'
import json
import sys

after = {}
for version in ("1.42.1", "1.45.2"):
    with open(f"{sys.argv[1]}/{version}.json") as file:
        before, after[version] = json.load(file)
    print(f"opentelemetry-sdk {version}:")
    for name, value in after[version].items():
        print(f"  {name:13} while it is 0.5: {before[name]}; 40 s after it has changed: {value or 'no such line'}")
as_described = after == {
    "1.42.1": {"steady": "1.0", "not_a_number": "NaN", "infinite": "+Inf"},
    "1.45.2": {"steady": "1.0", "not_a_number": None, "infinite": None},
}
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
