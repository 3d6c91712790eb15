#!/usr/bin/env bash
# ASHA stops trials that are worse than others, and lets one whose figure is NaN run to the end.
#
# Versions: ray 2.60.0 (ray.tune.schedulers.ASHAScheduler).
# Expected: a trial that has diverged (loss NaN) is the worst there is, and gets no more of the budget than the worst
#   finite one.
# Seen: at each rung the reward is compared by `<` with the cutoff of the others. NaN is never smaller, so the trial goes on
#   from rung to rung, and runs as long as the best one does; `get_best_result` leaves it out at the end. mode="min" and
#   mode="max" are alike.
# Who it hurts: sweeps over learning rates or temperatures, where the trials that diverge are those that eat the GPUs.
# Way round: report the worst finite value instead of NaN, or a stopper of your own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[tune]==2.60.0' 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
cd "$work"
RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS=0 RAY_AIR_NEW_OUTPUT=0 \
    "$work/venv/bin/python" - "$work" 2>"$work/log" <<'PY' || { status=$?; tail -5 "$work/log"; exit $status; }
import math
import sys

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler

EPOCHS = 9
# One trial at a time, good ones first, so that each later one meets filled rungs. None stands for a trial that diverges.
LEVELS = (0.1, 0.2, 0.3, 0.4, 5.0, None)
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=f"{sys.argv[1]}/ray")


def train(config):
    level = LEVELS[config["trial"]]
    for epoch in range(EPOCHS):
        tune.report({"loss": math.nan if level is None else level + 1 / (1 + epoch)})


results = tune.Tuner(
    train,
    param_space={"trial": tune.grid_search(list(range(len(LEVELS))))},
    tune_config=tune.TuneConfig(
        metric="loss",
        mode="min",
        max_concurrent_trials=1,
        scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=3),
    ),
    run_config=tune.RunConfig(storage_path=f"{sys.argv[1]}/results", verbose=0),
).fit()
epochs = {LEVELS[each.config["trial"]]: each.metrics["training_iteration"] for each in results}
for level in LEVELS:
    name = "diverges (NaN)" if level is None else f"level {level}"
    print(f"{name:15} ran {epochs[level]} of {EPOCHS} epochs")
as_described = epochs[None] == EPOCHS and epochs[5.0] == 1 and epochs[0.1] == EPOCHS
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
