"""Send metrics that the tracking server missed: `histill sync` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("sync_metrics"))
