"""Distil a low-resolution student from a high-resolution teacher.

The student mimics the teacher's logits and feature maps on tiles with and without labels (resolution distillation,
arXiv 2101.04170). The same name again resumes the run; a finished name is refused.

  python jobs/distill_student.py -c jobs/configs/distill_student.yaml teacher.model=s3://runs/high student.size_px=56
"""

from histill.cli import Outcome, run_job
from histill.config.distill_student import DistillConfig


def main(config: DistillConfig) -> Outcome:
    """Distil the student of `config`."""
    from histill.registry.training import train_tracked

    return Outcome(vars(train_tracked(config)))


if __name__ == "__main__":
    raise SystemExit(run_job(DistillConfig, main))
