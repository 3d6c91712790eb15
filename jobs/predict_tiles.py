"""Predict every tile of a tile set or of slides with a model, such as the champion, and draw heatmaps of the slides.

The predictions are Parquet files, one per shard of tiles, each written whole or not at all: the same command again
resumes an interrupted run, and no tile is predicted twice. Slides are cut like the model's tiles. A heatmap is a PNG,
and a GeoJSON that QuPath opens on the slide: both use level-0 pixels from the corner of OpenSlide's bounds, as QuPath
does, while the Parquet files count from the corner of level 0. `slides.csv` has a line per slide: its tiles and their
area, the mean share of each class (for a classifier the mean probability), and the tiles of each class; a segmenter's
tile counts as background if less than 1 % of it is foreground. With `embeddings=true`, and always for encoders, the
Parquet files also hold each tile's embedding, and `features/` an HDF5 file per slide in TRIDENT's form.

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
