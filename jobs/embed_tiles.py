"""Embed a tile set or slides, as Parquet and TRIDENT's HDF5: `histill embed` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("embed_tiles"))
