#!/usr/bin/env bash
# A metric that is NaN becomes 0.0 once it belongs to a LoggedModel, and so sorts as the best loss.
#
# Versions: mlflow 3.17.2 with its SQL store (sqlite).
# Expected: what a run does with the same value: NaN is read back as NaN. A search ordered by a loss does not put a
#   diverged model before all others.
# Seen: `log_metric(..., model_id=...)` keeps NaN for the run, and 0.0 for the model. `search_logged_models` ordered by
#   the loss, ascending, has the diverged model first, and a filter `metrics.val_loss < 0.3` finds it. (Infinity
#   comes back as the largest finite double from both, with no mark that it was clipped.)
# Who it hurts: whoever picks the best of many models by `search_logged_models`, as MLflow 3's pages do.
# Way round: choose by runs' metrics, or refuse to log what is not finite.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
cd "$work"
MLFLOW_TRACKING_URI="sqlite:///$work/mlflow.db" "$work/venv/bin/python" - 2>"$work/log" <<'PY' || { status=$?; tail -3 "$work/log"; exit $status; }
import math
import sys

import mlflow
from mlflow import MlflowClient

client = MlflowClient()
experiment = client.create_experiment("findings")
values = {"fair": 0.40, "good": 0.25, "diverged": math.nan, "overflowed": math.inf}
of_run, of_model = {}, {}
for name, value in values.items():
    run = client.create_run(experiment)
    model = client.create_logged_model(experiment, name=name, source_run_id=run.info.run_id)
    client.log_metric(run.info.run_id, "val_loss", value, model_id=model.model_id)
    of_run[name] = client.get_run(run.info.run_id).data.metrics["val_loss"]
    (metric,) = client.get_logged_model(model.model_id).metrics
    of_model[name] = metric.value


def search(**asked):
    found = mlflow.search_logged_models(experiment_ids=[experiment], output_format="list", **asked)
    return [model.name for model in found]


ranking = search(order_by=[{"field_name": "metrics.val_loss", "ascending": True}])
below = search(filter_string="metrics.val_loss < 0.3")
for name, value in values.items():
    print(f"{name:10} logged {value:<5} run {of_run[name]:<22} model {of_model[name]}")
print("models by val_loss, best first:", ranking)
print("models with val_loss < 0.3:", sorted(below))
as_described = (
    math.isnan(of_run["diverged"])
    and of_model["diverged"] == 0.0
    and ranking[0] == "diverged"
    and sorted(below) == ["diverged", "good"]
    and of_model["overflowed"] == sys.float_info.max
)
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
