"""Make a model the champion if it passes the gates, or roll back: `histill promote` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("promote_model"))
