"""Let a model, such as the champion, answer every tile of a set or of slides, and draw heatmaps of the slides.

The predictions are Parquet files, one for each shard of tiles, which are there whole or not at all: a run that was
interrupted goes on when the same command is given again, and no tile is there twice. Slides are cut as the model's
tiles were. A heatmap is a PNG, and a GeoJSON that QuPath opens on the slide: both count pixels of level 0 from the
corner of OpenSlide's bounds, as QuPath does, while the Parquet files count from the corner of level 0. `slides.csv` has
a line for each slide: its tiles and their area, the mean share of each class (of a classifier the mean probability),
and the tiles of each class; a segmenter's tile counts as background where less than 1 % of it is anything else.

    python jobs/predict_tiles.py model=models:/nuclei-student@champion tiles=s3://bucket/tiles output=s3://bucket/out
    python jobs/predict_tiles.py model=s3://bucket/runs/first 'slides=[s3://bucket/a.svs]' output=s3://bucket/out
"""

from histill.cli import Outcome, run_job
from histill.config.predict_tiles import PredictConfig


def main(config: PredictConfig) -> Outcome:
    """Predict with the model of `config`."""
    from histill.predict.predict import predict
    from histill.registry.materialize import materialize_model

    model = materialize_model(config.model, config.tracking, config.output, config.storage, name="model")
    return Outcome(vars(predict(config.model_copy(update={"model": model}))))


if __name__ == "__main__":
    raise SystemExit(run_job(PredictConfig, main))
