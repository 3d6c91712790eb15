"""Check that models, teachers and their responses are there before torch is loaded, which takes seconds."""

from histill.artifacts.model_folder import CARD_NAME, FINISHED_NAME, ModelCard, check_like, read_card, resolve
from histill.config.common import Storage, Teacher
from histill.errors import InputError
from histill.storage.control import exists
from histill.storage.uris import join
from histill.tiles.manifest import Header

HUB_CONFIG_NAME = "config.json"
RESPONSES_NAME = "responses.json"


def is_timm_folder(uri: str, storage: Storage) -> bool:
    """Whether `uri` is a folder in the form of the Hugging Face hub, and neither a model folder nor a run."""
    is_ours = any(exists(join(uri, name), storage) for name in (CARD_NAME, FINISHED_NAME))
    return not is_ours and exists(join(uri, HUB_CONFIG_NAME), storage)


def check_model(uri: str, header: Header, tiles: str, storage: Storage) -> ModelCard | None:
    """The card of the model at `uri`; None of a registered model, which is not fetched yet, and of a timm folder.

    Raises InputError when there is no model, or it sees other tiles than those of the set at `tiles`.
    """
    if uri.startswith("models:") or is_timm_folder(uri, storage):
        return None
    card = read_card(resolve(uri, storage), storage)
    check_like(card, header, tiles)
    return card


def check_teacher(teacher: Teacher, storage: Storage) -> None:
    """Raise InputError when the files of `teacher` are not there; a registered model is not fetched yet."""
    if teacher.model is not None:
        if not teacher.model.startswith("models:"):
            resolve(teacher.model, storage)
        return
    needed = {
        "onnx": teacher.onnx,
        "onnx_encoder": teacher.onnx_encoder,
        "onnx_nuclei": teacher.onnx_nuclei,
        "encoder": None if teacher.encoder is None else join(teacher.encoder.folder, HUB_CONFIG_NAME),
    }.get(teacher.key)
    if needed is not None and not exists(needed, storage):
        raise InputError(
            f"{needed} of teacher.{teacher.key} does not exist; correct the address.", code="model-missing"
        )


def check_responses(uri: str, storage: Storage) -> None:
    """Raise InputError when `uri` is not a folder of finished responses."""
    if not exists(join(uri, RESPONSES_NAME), storage):
        raise no_responses(uri)


def no_responses(uri: str) -> InputError:
    """The error of a folder without finished responses."""
    return InputError(f"{uri} holds no finished responses; make them with histill cache.", code="responses-missing")


def check_weights(uri: str, storage: Storage) -> None:
    """Raise InputError when the file of published weights is not there."""
    if not exists(uri, storage):
        raise InputError(f"weights {uri} are missing; correct the address.", code="weights-missing")
