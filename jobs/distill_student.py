"""Distil a student that sees tiles at low resolution from a teacher that sees them at high resolution.

It mimics the teacher's answers and feature maps on tiles with and without labels (resolution distillation, arXiv
2101.04170). The same name again goes on where the run stopped, and a finished name is refused.

  python jobs/distill_student.py -c jobs/configs/distill_student.yaml teacher.model=s3://runs/high student.size_px=56
"""

from histill.cli import Outcome, run_job
from histill.config.distill import DistillConfig


def main(config: DistillConfig) -> Outcome:
    """Distil the student of `config`."""
    from histill.cluster.connect import connected
    from histill.registry.runs import open_run
    from histill.registry.server import check_tracking
    from histill.registry.settled import settled_model, settled_teacher
    from histill.train.launch import train_run
    from histill.train.prepare import prepare_distillation

    teacher = settled_teacher(config.teacher, config.tracking, config.runs, config.storage)
    config = config.model_copy(update={"teacher": teacher})
    if config.encoder is not None:
        encoder = settled_model(config.encoder, config.tracking, config.runs, config.storage, name="encoder")
        config = config.model_copy(update={"encoder": encoder})
    prepared = prepare_distillation(config)
    check_tracking(config.tracking)
    with connected():
        return Outcome(vars(train_run(prepared, open_run)))


if __name__ == "__main__":
    raise SystemExit(run_job(DistillConfig, main))
