"""Export a model for other programs: `histill export` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("export_model"))
