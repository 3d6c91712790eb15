"""Train a teacher on masks or labels: `histill train` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("train_teacher"))
