"""RCKD: pretrain a student on a nuclei teacher's responses, without labels.

Workers stream the tiles from the tile set's manifest; the teacher answers from its cached responses
(jobs/cache_responses.py) or live. Checkpoints go to <runs>/<name>; the same name again goes on where the run
stopped, and a finished name is refused.

  python jobs/pretrain_student.py -c jobs/configs/pretrain_student.yaml name=first data.tiles=s3://tiles/liver
"""

from histill.cli import Outcome, run_job
from histill.config.runs import PretrainConfig


def main(config: PretrainConfig) -> Outcome:
    """Train the student of `config`."""
    from histill.cluster.connect import connected
    from histill.registry.runs import open_run
    from histill.registry.server import check_tracking
    from histill.registry.settled import settled_teacher
    from histill.train.launch import train_run
    from histill.train.prepare import prepare_pretraining

    teacher = settled_teacher(config.teacher, config.tracking, config.runs, config.storage)
    config = config.model_copy(update={"teacher": teacher})
    prepared = prepare_pretraining(config)
    check_tracking(config.tracking)
    with connected():
        return Outcome(vars(train_run(prepared, open_run)))


if __name__ == "__main__":
    raise SystemExit(run_job(PretrainConfig, main))
