"""Predict a held-out split with a model, or with a probe of its encoder."""

from histill.artifacts.check_places import is_timm_folder
from histill.artifacts.model_folder import read_card, resolve
from histill.config.common import Storage, Workers
from histill.config.encoder import EncoderFacts
from histill.config.score_model import HeldOut
from histill.evaluate.evaluator import Evaluator, Examined, predict_split
from histill.evaluate.representation.probing import probe_encoder

_AS_ITS_FOLDER = EncoderFacts()


def examine(
    model: str,
    held_out: HeldOut,
    storage: Storage,
    workers: Workers | None = None,
    encoder: EncoderFacts = _AS_ITS_FOLDER,
) -> Examined:
    """Load the model folder, finished run or timm folder `model` and predict every tile of `held_out`, each once.

    Encoders are probed, and with `held_out.probe` the encoder of any model; `encoder` says how a timm folder is read.
    Runs in this process or, with `workers`, as tasks, which read `model` themselves. Raises InputError as
    `Evaluator.load` and `probe_encoder` do.
    """
    probed = held_out.probe is not None or encoder != _AS_ITS_FOLDER or is_timm_folder(model, storage)
    if probed or read_card(resolve(model, storage), storage).kind == "encoder":
        return probe_encoder(model, held_out, storage, workers, encoder)
    examiner = Evaluator.load(model, held_out, storage)
    return Examined(examiner, predict_split(examiner, model, workers))
