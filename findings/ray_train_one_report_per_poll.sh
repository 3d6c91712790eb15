#!/usr/bin/env bash
# Ray Train reads one report of a worker each time it asks for its health, every 2 s: a loop that reports waits for that.
#
# Versions: Ray 2.60.0, Train V2.
# Expected: `ray.train.report(metrics)` without a checkpoint hands the metrics over and returns; with one worker there is
#   nobody to wait for, so a loop that reports every 10 ms step goes on at nearly its own pace.
# Seen: a worker holds at most one unread report, and the controller takes one at each poll of the worker's health, whose
#   period RAY_TRAIN_HEALTH_CHECK_INTERVAL_S has 2 s as default. From the third report on every call waits: 15 reports that
#   would take 0.15 s take about 28 s, and a few where the period is set to 0.1 s. Nothing is logged.
# Who it hurts: loops that report often, and all short ones: epochs of small data, trials of a sweep, tests. The GPU idles
#   inside `report`, and the step looks slow.
# Way round: RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.5 or so in the driver's environment, from where it reaches the controller.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "ray[default,train]==2.60.0" 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
cat >"$work/reports.py" <<'PY'
import json
import os
import sys
import time

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

REPORTS = 15
work = sys.argv[1]


def loop(config):
    begun = time.monotonic()
    for step in range(REPORTS):
        time.sleep(0.01)
        ray.train.report({"step": step})
    with open(config["path"], "w") as file:
        json.dump(time.monotonic() - begun, file)


def seconds(name):
    path = f"{work}/{name}.json"
    DataParallelTrainer(
        loop,
        train_loop_config={"path": path},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(name=name, storage_path=f"{work}/runs"),
    ).fit()
    with open(path) as file:
        return json.load(file)


ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
default = seconds("default")
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
short = seconds("short")
print(f"{REPORTS} reports of steps of 10 ms: {default:.1f} s by default, {short:.1f} s when polled every 0.1 s")
as_described = default > 1.5 * (REPORTS - 3) and short < default / 2
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" "$work/reports.py" "$work" 2>"$work/log" ||
    { status=$?; tail -5 "$work/log"; exit $status; }
