"""Send metrics that the tracking server was not there to take.

A run goes on without its server, and sends what it holds when the server answers again. What is left at its end lies in
the folder `_unsent` beside the runs; the next run there sends it, or this job does.

    python jobs/sync_metrics.py unsent=s3://bucket/runs/_unsent
"""

from histill.cli import Outcome, run_job
from histill.config.sync_metrics import SyncConfig


def main(config: SyncConfig) -> Outcome:
    """Send what is kept in `config.unsent`."""
    from histill.registry.metric_spool import sync_metrics

    return Outcome(vars(sync_metrics(config)))


if __name__ == "__main__":
    raise SystemExit(run_job(SyncConfig, main))
