"""Convert published weights to an embedding teacher: `histill convert` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("convert_encoder"))
