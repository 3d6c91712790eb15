#!/usr/bin/env bash
# A client's `load_table` asks another tracking store than the client's own `log_table` has written to.
#
# Versions: mlflow 3.17.2.
# Expected: all methods of `MlflowClient(tracking_uri=A)` speak with A.
# Seen: `log_table` writes to A. `load_table` of the same client looks for runs by the process's global tracking URI: where that is
#   another store, it says that there are no runs, though `get_run` of the same client finds the run and its artifact; where the
#   other store has an experiment of the same number, it takes that one's runs, asks A for their artifacts, and says that A lacks
#   the run. Where no global URI was set, it makes a new, empty `mlflow.db` in the working directory.
# Who it hurts: jobs that hold two clients, as those that copy a model from a development server to production.
# Way round: download the artifact by the client and read the JSON, or set the global URI for the moment.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mlflow==3.17.2 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
mkdir "$work/here"
cd "$work/here"
env -u MLFLOW_TRACKING_URI "$work/venv/bin/python" - "$work" 2>"$work/log" <<'PY' || { status=$?; tail -3 "$work/log"; exit $status; }
import os
import sys

import mlflow
from mlflow import MlflowClient


def client_of(name):
    os.makedirs(f"{sys.argv[1]}/{name}", exist_ok=True)
    return MlflowClient(tracking_uri=f"sqlite:///{sys.argv[1]}/{name}/mlflow.db")


def log(client, values):
    experiment = client.create_experiment("tables", artifact_location=f"{sys.argv[1]}/artifacts-{values[0]}")
    run = client.create_run(experiment)
    client.log_table(run.info.run_id, {"dice": values}, "scores.json")
    return experiment, run.info.run_id


def load(client, experiment):
    try:
        return client.load_table(experiment, "scores.json")["dice"].tolist()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).split('. ')[0]}"


development, production = client_of("development"), client_of("production")
experiment, run = log(development, [0.7, 0.8])
print("the run's artifacts by the same client:", [each.path for each in development.list_artifacts(run)])
alone = load(development, experiment)
print("load_table of the client that wrote it:", alone)
made = os.path.exists("mlflow.db")
print("a new mlflow.db in the working directory:", made)

other, stranger = log(production, [0.1, 0.2])
mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}/production/mlflow.db")
mixed = load(development, experiment)
print(f"with production as the global URI (experiments {experiment} and {other}):", mixed)
as_described = "No runs found" in str(alone) and made and experiment == other and f"Run with id={stranger} not found" in str(mixed)
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
