"""Score a model on held-out tiles: every tile counted once, with 95 % intervals over cases.

Segmenters get Dice and mIoU over the whole set, against masks or a teacher; classifiers get balanced accuracy, macro
F1, AUROC and calibration error, against labels. Figures are also given by slide and stain and on degraded tiles, and
the model's cost is measured on this machine. The HTML page that `report` names is self-contained.

Encoders, and with `held_out.probe` the encoder of any model, are scored by their embeddings: a linear probe, fitted to
the labels of the training split, predicts the held-out tiles. Nearest neighbors, few-shot classification and retrieval
are reported beside it, and the robustness index if a table gives each case's center or scanner. `model` may also be a
timm model as the Hugging Face hub has them, to be compared with a student.

    python jobs/score_model.py model=s3://runs/first held_out.tiles=s3://tiles/liver report=first.html
    python jobs/score_model.py model=s3://runs/encoder held_out.tiles=s3://tiles/liver held_out.probe.neighbors=20
    python jobs/score_model.py model=s3://teachers/uni2-h encoder.preset=uni2-h held_out.tiles=s3://tiles/liver
"""

from histill.cli import Outcome, run_job
from histill.config.score_model import ScoreConfig


def main(config: ScoreConfig) -> Outcome:
    """Score the model of `config`."""
    import dataclasses

    from histill.registry.scoring import run_scoring

    return Outcome(dataclasses.asdict(run_scoring(config)))


if __name__ == "__main__":
    raise SystemExit(run_job(ScoreConfig, main))
