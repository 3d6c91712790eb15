"""Sweep any keys of a run with Ray Tune: each trial is a Ray Train run, and hopeless ones are stopped early.

`job` is the kind of run of each trial, whose keys are all accepted: pretrain_student, distill_student, finetune_student
or train_teacher.
`space` maps dotted keys to how they are drawn: {optimizer.lr: {loguniform: [1e-4, 1e-2]}, student.size_px: {choice:
[128, 256]}}. The finished sweep's folder is a run folder: scoring or promoting it uses the best trial.

  python jobs/search_students.py -c jobs/configs/search_students.yaml name=sweep data.tiles=s3://tiles/liver
  python jobs/search_students.py -c sweep.yaml space.optimizer.lr.loguniform=[1e-4,1e-2]
  python jobs/search_students.py -c sweep.yaml job=distill_student objective=front --register-best csat
"""

import sys

from histill.cli import Outcome, run_job
from histill.config.search_students import SearchConfig
from histill.search.configs import SEARCHES


def main(config: SearchConfig) -> Outcome:
    """Run the sweep of `config`."""
    from tabulate import tabulate

    from histill.cluster.connect import connect_cluster
    from histill.registry.mlflow_client import check_tracking, require_server_uri
    from histill.registry.mlflow_runs import open_run
    from histill.registry.training import fetch_sources
    from histill.registry.versions import register
    from histill.search.results import metric_label
    from histill.search.sweep import RECORD_NAME, prepare_sweep, run_sweep
    from histill.storage.control import json_bytes

    prepared = prepare_sweep(fetch_sources(config))
    if config.register_best is None:
        check_tracking(config.tracking)
    else:
        require_server_uri(config.tracking)

    def register_best(model: str, name: str, record: dict[str, object]) -> str:
        return register(model, name, {RECORD_NAME: json_bytes(record)}, config.tracking, config.storage)

    with connect_cluster():
        sweep = run_sweep(prepared, open_run, register_best)
    rows = [
        [*(row[key] for key in row if key not in ("front", "error")), row["error"] or ("front" if row["front"] else "")]
        for row in sweep.rows()
    ]
    headers = ["trial", *list(sweep.rows()[0])[1:-4], metric_label(sweep.metric), metric_label(sweep.cost), ""]
    print(tabulate(rows, headers=headers, floatfmt=".4g"), file=sys.stderr)
    if sweep.version is not None:
        print(f"{sweep.best.trial} is version {sweep.version} of {config.register_best}", file=sys.stderr)
    best = sweep.best
    return Outcome(
        {
            "run": sweep.run,
            "model": best.model,
            "best": dict(best.values),
            sweep.metric: best.quality,
            "front": list(sweep.front),
            "trials": len(sweep.trials),
            "version": sweep.version,
            "tracking_run": sweep.tracking_run,
        }
    )


if __name__ == "__main__":
    raise SystemExit(run_job(SEARCHES, main))
