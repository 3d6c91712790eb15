"""Log a version's model to the tracking server: its files, and the run that trained it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage
from histill.errors import InputError
from histill.registry.evidence import find_onnx, read_license
from histill.registry.mlflow_model import complete_model, describe_model
from histill.registry.mlflow_runs import find_run
from histill.storage.records import read_record
from histill.storage.uris import folder_of, join
from histill.train.run_folder import RECORD_NAME, RunRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


def find_training_run(model: str, storage: Storage) -> str | None:
    """The id of the tracked run in whose folder the model folder `model` lies; None if there is none on record."""
    try:
        return read_record(RunRecord, join(folder_of(model.rstrip("/")), RECORD_NAME), storage).tracking_run
    except (FileNotFoundError, InputError):
        return None


def log_model(
    client: "MlflowClient",
    run_id: str,
    name: str,
    folder: Path,
    card: ModelCard,
    digest: str,
    evidence: Mapping[str, bytes],
    trained_by: str | None,
) -> "LoggedModel":
    """Make the model folder `folder` an MLflow model, and upload it as a LoggedModel of the experiment of `run_id`.

    Args:
        client: of the server.
        run_id: the run that registers it.
        name: its registered name.
        folder: a local copy, to which MLflow's files are added.
        card: the folder's.
        digest: the folder's.
        evidence: files of the version by path, of which the ONNX file becomes part of the model.
        trained_by: the run that trained it; `run_id` stands for one that is not on record or not on this server.
    """
    from mlflow.entities import LoggedModelOutput

    about = describe_model(card, digest, read_license(evidence))
    source = run_id if trained_by is None or find_run(client, trained_by) is None else trained_by
    model = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name.replace(".", "-"),  # MLflow allows a dot in the name of a registered model only
        source,
        params={key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()},
        model_type=card.kind,
    )
    try:
        complete_model(folder, card, about, find_onnx(evidence), model_id=model.model_id, run_id=source)
        client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.log_outputs(source, [LoggedModelOutput(model.model_id, step=0)])
    return client.finalize_logged_model(model.model_id, "READY")
