"""Score a model on held-out tiles, and its cost.

A segmenter by Dice and mIoU over the whole set, against masks or a teacher; a classifier by balanced accuracy, macro
F1, AUROC and calibration error, against labels.

python jobs/score_model.py model=s3://runs/first held_out.tiles=s3://tiles/liver picture=rows.png
"""

import sys

from histill.cli import Outcome, run_job
from histill.config.scoring import ScoreConfig


def main(config: ScoreConfig) -> Outcome:
    """Score the model of `config`."""
    import tempfile
    from pathlib import Path

    from histill.artifacts.model_folder import read_card, resolve
    from histill.errors import InputError
    from histill.evaluate.pictures import comparison_rows
    from histill.evaluate.score import score_model
    from histill.evaluate.score_classes import score_classes
    from histill.registry.settled import settled_reference
    from histill.registry.versions import fetch_model
    from histill.storage.control import write_bytes

    with tempfile.TemporaryDirectory(prefix="histill-") as folder:
        model = fetch_model(config.model, config.tracking, Path(folder))
        if read_card(resolve(model, config.storage), config.storage).kind == "classification":
            if config.picture:
                raise InputError(f"picture {config.picture} shows masks and {config.model} has none; leave it out.")
            return Outcome(vars(score_classes(model, config.held_out, config.storage)))
        held_out = settled_reference(config.held_out, config.tracking, folder, config.storage)
        score = score_model(model, held_out, config.storage)
        if config.picture:
            rows = comparison_rows(model, held_out, config.picture_rows, config.storage)
            write_bytes(config.picture, rows, config.storage)
            print(f"picture: {config.picture}", file=sys.stderr)
    return Outcome(vars(score))


if __name__ == "__main__":
    raise SystemExit(run_job(ScoreConfig, main))
