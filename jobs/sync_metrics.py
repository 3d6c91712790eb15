"""Send metrics that could not be sent while the tracking server was unreachable.

A run continues without its server, and sends held metrics when the server answers again. Those left at its end are
spooled in the folder `_unsent` beside the runs; the next run there sends them, or this job does.

    python jobs/sync_metrics.py unsent=s3://bucket/runs/_unsent
"""

from histill.cli import Outcome, run_job
from histill.config.sync_metrics import SyncConfig


def main(config: SyncConfig) -> Outcome:
    """Send the metrics spooled in `config.unsent`."""
    from histill.registry.metric_spool import sync_metrics

    return Outcome(vars(sync_metrics(config)))


if __name__ == "__main__":
    raise SystemExit(run_job(SyncConfig, main))
