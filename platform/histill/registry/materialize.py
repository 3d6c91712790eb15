"""Copy registered models to storage that every node can read."""

from pathlib import Path

from histill.artifacts import model_folder
from histill.artifacts.model_folder import ONNX_NAME
from histill.config.common import Storage, Teacher, Tracking, Workers
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.registry.fetch import fetch_model
from histill.registry.mlflow_client import require_server_uri
from histill.storage.control import exists, probe, write_bytes
from histill.storage.scratch import scratch_folder
from histill.storage.uris import join


def materialize_model(uri: str, tracking: Tracking, folder_uri: str, storage: Storage, *, name: str) -> str:
    """Return a URI of the model `uri` that can be read without the registry.

    A model `models:/name@alias` or `models:/name/3` is copied to `<folder_uri>/<name>-<12 digits of its digest>`. The
    path depends on the model alone, so a restarted run gets the same configuration, unless the alias has moved to
    another model meanwhile. Any other URI is returned unchanged.

    Raises InputError when there is no such version, or `folder_uri` cannot be written.
    """
    if not uri.startswith("models:"):
        return uri
    probe(folder_uri, storage)
    with scratch_folder() as temporary:
        fetched = fetch_model(uri, tracking, Path(temporary), with_onnx=True)
        card = model_folder.read_card(fetched, Storage())
        digest = model_folder.digest_of(card, Path(fetched, model_folder.WEIGHTS_NAME).read_bytes())
        target = join(folder_uri, f"{name}-{digest[:12]}")
        if not exists(join(target, model_folder.CARD_NAME), storage):  # the card is written last
            if (onnx := Path(fetched, ONNX_NAME)).exists():  # for what runs the model
                write_bytes(join(target, ONNX_NAME), onnx.read_bytes(), storage)
            model_folder.copy(fetched, target, storage)
    return target


def materialize_teacher(teacher: Teacher, tracking: Tracking, folder_uri: str, storage: Storage) -> Teacher:
    """`teacher` with its model, if any, materialized. Raises InputError as `materialize_model` does."""
    if teacher.model is None:
        return teacher
    model = materialize_model(teacher.model, tracking, folder_uri, storage, name="teacher")
    return teacher.model_copy(update={"model": model})


def materialize_reference(held_out: HeldOut, tracking: Tracking, folder_uri: str, storage: Storage) -> HeldOut:
    """`held_out` with its reference, if any, materialized."""
    if held_out.reference is None:
        return held_out
    return held_out.model_copy(
        update={"reference": materialize_teacher(held_out.reference, tracking, folder_uri, storage)}
    )


def check_workers(model: str, held_out: HeldOut, workers: Workers | None, tracking: Tracking) -> None:
    """Raise InputError when workers would have to read a registered model, which is fetched to this process alone.

    Without a registry that answers, that is the fault which is named.
    """
    if workers is None or workers.in_process:
        return
    models = {"model": model}
    if held_out.reference is not None and held_out.reference.model is not None:
        models["held_out.reference.model"] = held_out.reference.model
    for key, uri in models.items():
        if uri.startswith("models:"):
            require_server_uri(tracking)
            raise InputError(
                f"workers read the model themselves and {key} is {uri}, which only this job fetches; name the run or "
                "a model folder in object storage, or leave workers out.",
                code="model-local-only",
            )
