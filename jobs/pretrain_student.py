"""RCKD: pretrain a student on a nuclei teacher's responses, without labels.

Workers stream the tiles in the tile set's manifest; the teacher's responses are cached (jobs/cache_responses.py) or
computed live. Checkpoints go to <runs>/<name>; the same name again resumes the run; a finished name is refused.

  python jobs/pretrain_student.py -c jobs/configs/pretrain_student.yaml name=first data.tiles=s3://tiles/liver
"""

from histill.cli import Outcome, run_job
from histill.config.pretrain_student import PretrainConfig


def main(config: PretrainConfig) -> Outcome:
    """Train the student of `config`."""
    from histill.registry.training import train_tracked

    return Outcome(vars(train_tracked(config)))


if __name__ == "__main__":
    raise SystemExit(run_job(PretrainConfig, main))
