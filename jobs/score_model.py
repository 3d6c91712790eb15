"""Score a model on held-out tiles: `histill score` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("score_model"))
