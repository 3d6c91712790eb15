#!/usr/bin/env bash
# Ray Train's cleaning actor never ends once the run that it looks after has died: each killed driver leaves a process.
#
# Versions: Ray 2.60.0, Train V2.
# Expected: a run's controller starts a detached actor, PlacementGroupCleaner, that frees the run's placement group when the
#   controller dies without doing so, and then leaves ("Exit the actor after cleanup since controller is dead").
# Seen: the placement group is freed, and the actor stays ALIVE. It calls `ray.actor.exit_actor()` in the thread with which
#   it watches; that raises SystemExit, which ends this thread alone, and marks the actor to exit after its next task, which
#   nobody sends. A process of about 200 MB and a share of the head node's resource are held as long as the cluster is up.
# Who it hurts: schedulers that restart or preempt drivers of a long-lived cluster: its head fills with actors of jobs that
#   are long gone.
# Way round: a subclass that ends itself by `ray.kill(ray.get_runtime_context().current_actor)`, put in by a callback.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "ray[default,train]==2.60.0" 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
cat >"$work/driver.py" <<'PY'
import sys
import time

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
DataParallelTrainer(
    lambda: time.sleep(600),
    scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
    run_config=RunConfig(name="run", storage_path=sys.argv[2]),
).fit()
PY
cat >"$work/watch.py" <<'PY'
import os
import signal
import subprocess
import sys
import time

import ray
from ray.util.state import list_actors, list_placement_groups

GONE_WITHIN_S = 60
work = sys.argv[1]
context = ray.init(num_cpus=2, include_dashboard=True, logging_level="ERROR", log_to_driver=False)
address = os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]  # which the state API asks


def alive(class_name):
    return list_actors(filters=[("class_name", "=", class_name), ("state", "=", "ALIVE")])


def groups():
    return list_placement_groups(filters=[("state", "=", "CREATED")])


def wait_until(condition, seconds):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(1)
    return condition()


driver = subprocess.Popen([sys.executable, f"{work}/driver.py", address, f"{work}/runs"], start_new_session=True)
try:
    assert wait_until(lambda: alive("RayTrainWorker") and alive("PlacementGroupCleaner") and groups(), 180)
    time.sleep(5)
finally:
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
freed = wait_until(lambda: not groups() and not alive("TrainController"), GONE_WITHIN_S)
print("placement group and controller are gone" if freed else "placement group or controller are still there")
left = 0 if wait_until(lambda: not alive("PlacementGroupCleaner"), GONE_WITHIN_S) else len(alive("PlacementGroupCleaner"))
print(f"cleaning actors alive {GONE_WITHIN_S} s later: {left}")
as_described = freed and left == 1
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" "$work/watch.py" "$work"
