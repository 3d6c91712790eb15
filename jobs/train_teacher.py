"""Train a network teacher over any timm encoder: a U-Net on the nuclei masks of a tile set, or a classifier on labels.

The finished run's folder is what other jobs take as teacher.model. The same name again goes on where the run
stopped, and a finished name is refused.

  python jobs/train_teacher.py -c jobs/configs/train_teacher.yaml name=teacher data.tiles=s3://tiles/nuclei
"""

from histill.cli import Outcome, run_job
from histill.config.runs import TeacherConfig


def main(config: TeacherConfig) -> Outcome:
    """Train the teacher of `config`."""
    from histill.cluster.connect import connected
    from histill.registry.runs import open_run
    from histill.registry.server import check_tracking
    from histill.train.launch import train_run
    from histill.train.prepare import prepare_teacher

    prepared = prepare_teacher(config)
    check_tracking(config.tracking)
    with connected():
        return Outcome(vars(train_run(prepared, open_run)))


if __name__ == "__main__":
    raise SystemExit(run_job(TeacherConfig, main))
