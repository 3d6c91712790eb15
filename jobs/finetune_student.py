"""Fine-tune a pretrained student: classify whole tiles by label, or segment them by mask.

The encoder comes from a pretraining run, a model folder or the registry; without one the same network is trained from
scratch, for comparison. A classifier starts from a logistic regression on the encoder's features (head=probe is that
alone, in seconds), and the run ends with its best model by validation. The same name again resumes the run; a finished
name is refused.

  python jobs/finetune_student.py -c jobs/configs/finetune_student.yaml encoder=s3://runs/first data.tiles=s3://tiles/b
"""

from histill.cli import Outcome, run_job
from histill.config.finetune_student import FinetuneConfig


def main(config: FinetuneConfig) -> Outcome:
    """Fine-tune the student of `config`."""
    from histill.registry.training import train_tracked

    return Outcome(vars(train_tracked(config)))


if __name__ == "__main__":
    raise SystemExit(run_job(FinetuneConfig, main))
