"""Fine-tune a pretrained student: classify whole tiles by label, or segment them by mask.

The encoder comes from a pretraining run, a model folder or the registry; without one the same network is trained from
scratch, for comparison. The same name again goes on where the run stopped, and a finished name is refused.

  python jobs/finetune_student.py -c jobs/configs/finetune_student.yaml encoder=s3://runs/first data.tiles=s3://tiles/b
"""

from histill.cli import Outcome, run_job
from histill.config.finetune import FinetuneConfig


def main(config: FinetuneConfig) -> Outcome:
    """Fine-tune the student of `config`."""
    from histill.cluster.connect import connected
    from histill.registry.runs import open_run
    from histill.registry.server import check_tracking
    from histill.registry.settled import settled_model
    from histill.train.launch import train_run
    from histill.train.prepare import prepare_finetuning

    if config.encoder is not None:
        encoder = settled_model(config.encoder, config.tracking, config.runs, config.storage, name="encoder")
        config = config.model_copy(update={"encoder": encoder})
    prepared = prepare_finetuning(config)
    check_tracking(config.tracking)
    with connected():
        return Outcome(vars(train_run(prepared, open_run)))


if __name__ == "__main__":
    raise SystemExit(run_job(FinetuneConfig, main))
