"""Cut slides, or import images, into a tile set: `histill ingest` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("ingest_tiles"))
