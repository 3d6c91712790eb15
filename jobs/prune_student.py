"""Prune a trained student, which then recovers from a teacher: `histill prune` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("prune_student"))
