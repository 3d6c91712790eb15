"""Predict a tile set or slides, with heatmaps for QuPath: `histill predict` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("predict_tiles"))
