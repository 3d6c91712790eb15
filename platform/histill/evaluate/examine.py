"""Let a model answer a held-out split, or the probe of its encoder in its place."""

from histill.artifacts.model_folder import read_card, resolve
from histill.config.common import Storage, Workers
from histill.config.score_model import HeldOut
from histill.evaluate.evaluator import Evaluator, Examined, predict_split
from histill.evaluate.representation.probing import probe_encoder


def examine(model: str, held_out: HeldOut, storage: Storage, workers: Workers | None = None) -> Examined:
    """The model folder or finished run `model` with its answers to every tile of `held_out`, each counted once.

    In this process, or with `workers` by tasks, which need to find `model` themselves. An encoder alone has no answers
    and is probed, and so is that of any model for `held_out.probe`. Raises InputError as `Evaluator.load` and
    `probe_encoder` do.
    """
    if held_out.probe is not None or read_card(resolve(model, storage), storage).kind == "encoder":
        return probe_encoder(model, held_out, storage, workers)
    examiner = Evaluator.load(model, held_out, storage)
    return Examined(examiner, predict_split(examiner, model, workers))
