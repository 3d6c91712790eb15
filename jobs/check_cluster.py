"""Check the cluster before a long run: a table of passed and failed checks, each failure with a fix.

Ray, its token, the nodes' versions, code, clocks, disks and GPUs; and from the driver and every node, object storage
and MLflow. It takes seconds, and leaves no file behind. Exit status 1 if anything failed; warnings do not count.

    python jobs/check_cluster.py read=s3://bucket/tiles write=s3://bucket/runs workers.count=8 workers.gpus=1
"""

from histill.cli import Outcome, run_job
from histill.config.check_cluster import CheckConfig


def main(config: CheckConfig) -> Outcome:
    """Check what `config` names and print the table."""
    import dataclasses
    import sys

    from histill.preflight.check import check_cluster
    from histill.preflight.table import format_table, terminal_width, wants_color

    rows = check_cluster(config)
    print(format_table(rows, terminal_width(sys.stderr), wants_color(sys.stderr)), file=sys.stderr)
    failed = sum(row.state == "failed" for row in rows)
    return Outcome({"failed": failed, "checks": [dataclasses.asdict(row) for row in rows]}, ok=not failed)


if __name__ == "__main__":
    raise SystemExit(run_job(CheckConfig, main))
