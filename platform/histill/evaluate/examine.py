"""Predict a held-out split with a model, or with a probe of its encoder."""

from histill.artifacts.check_places import is_timm_folder
from histill.artifacts.model_folder import read_card, resolve
from histill.config.common import Storage, Workers
from histill.config.encoder import EncoderFacts
from histill.config.engine import ON_CPUS, EngineOption
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.evaluate.evaluator import Evaluator, Examined, predict_split
from histill.evaluate.representation.probing import probe_encoder

_AS_ITS_FOLDER = EncoderFacts()


def examine(
    model: str,
    held_out: HeldOut,
    storage: Storage,
    workers: Workers | None = None,
    encoder: EncoderFacts = _AS_ITS_FOLDER,
    engine: EngineOption = "torch",
) -> Examined:
    """Load the model folder, finished run or timm folder `model` and predict every tile of `held_out`, each once.

    Encoders are probed, and with `held_out.probe` the encoder of any model; `encoder` says how a timm folder is read.
    Runs in this process or, with `workers`, as tasks, which read `model` themselves. Raises InputError as
    `Evaluator.load`, `start_engine` and `probe_encoder` do, and for an `engine` that should give embeddings.
    """
    probed = held_out.probe is not None or encoder != _AS_ITS_FOLDER or is_timm_folder(model, storage)
    if probed or read_card(resolve(model, storage), storage).kind == "encoder":
        if engine in ON_CPUS:
            raise InputError(
                f"engine={engine} runs models with classes, and embeddings are scored by torch; leave engine out.",
                code="option-not-applicable",
            )
        return probe_encoder(model, held_out, storage, workers, encoder)
    examiner = Evaluator.load(model, held_out, storage)
    if workers is None or workers.in_process:
        examiner = examiner.start(engine, model, len(examiner.rows))
    return Examined(examiner, predict_split(examiner, model, workers, engine))
