"""Check cluster, storage and tracking before a long run: `histill check` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("check_cluster"))
