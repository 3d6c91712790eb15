"""Train a network teacher over any timm encoder: a U-Net on the nuclei masks of a tile set, or a classifier on labels.

Other jobs take the finished run's folder as teacher.model. The same name again resumes the run; a finished name is
refused.

  python jobs/train_teacher.py -c jobs/configs/train_teacher.yaml name=teacher data.tiles=s3://tiles/nuclei
"""

from histill.cli import Outcome, run_job
from histill.config.train_teacher import TeacherConfig


def main(config: TeacherConfig) -> Outcome:
    """Train the teacher of `config`."""
    from histill.registry.training import train_tracked

    return Outcome(vars(train_tracked(config)))


if __name__ == "__main__":
    raise SystemExit(run_job(TeacherConfig, main))
