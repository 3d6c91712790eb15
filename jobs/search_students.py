"""Search students: Ray Tune over any keys of a pretraining run, each trial a Ray Train run, ASHA stopping early.

`space` maps dotted keys to how they are drawn: {loss.temperature: {loguniform: [1, 8]}, student.size_px: {choice:
[128, 256]}}. The finished sweep's folder is a run folder: score or promote it, and its best trial is meant.

  python jobs/search_students.py -c jobs/configs/search_students.yaml name=sweep data.tiles=s3://tiles/liver
"""

import sys

from histill.cli import Outcome, run_job
from histill.config.search import SearchConfig


def main(config: SearchConfig) -> Outcome:
    """Run the sweep of `config`."""
    from tabulate import tabulate

    from histill.cluster.connect import connected
    from histill.registry.runs import open_run
    from histill.registry.server import check_tracking
    from histill.registry.settled import settled_teacher
    from histill.search.sweep import check_sweep, run_sweep

    teacher = settled_teacher(config.teacher, config.tracking, config.runs, config.storage)
    config = config.model_copy(update={"teacher": teacher})
    check_sweep(config)
    check_tracking(config.tracking)
    with connected():
        sweep = run_sweep(config, open_run)
    rows = [
        (
            trial.trial, *(trial.values.get(key) for key in config.space), trial.epochs, trial.val_dice, trial.gmacs,
            trial.error or ("front" if trial.trial in sweep.front else ""),
        )
        for trial in sweep.trials
    ]  # fmt: skip
    headers = ("trial", *config.space, "epochs", "val Dice", "GMACs", "")
    print(tabulate(rows, headers=headers, floatfmt=".4g"), file=sys.stderr)
    best = sweep.best
    return Outcome(
        {
            "run": sweep.run,
            "model": best.model,
            "best": dict(best.values),
            "val_dice": best.val_dice,
            "front": list(sweep.front),
            "trials": len(sweep.trials),
            "tracking_run": sweep.tracking_run,
        }
    )


if __name__ == "__main__":
    raise SystemExit(run_job(SearchConfig, main))
