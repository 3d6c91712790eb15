"""Distil a low-resolution student from a high-resolution teacher: `histill distill` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("distill_student"))
