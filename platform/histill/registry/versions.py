"""Register a model as a version, with its score and its lineage; which versions there are."""

import logging
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from histill.artifacts import model_folder
from histill.artifacts.checksums import CHECKSUMS_NAME
from histill.artifacts.lineage import list_teachers
from histill.artifacts.model_folder import TaughtBy
from histill.config.common import Storage, Tracking
from histill.errors import InputError
from histill.registry.datasets import log_figures
from histill.registry.evidence import EXPORTS_FOLDER, read_figures
from histill.registry.fetch import LOGGED_MODEL_TAG, find_version
from histill.registry.mlflow_client import connect, error_code, log_file, require_server_uri, server_errors
from histill.registry.mlflow_runs import begin_run, end_dead_runs
from histill.registry.mlflow_tracker import MlflowTracker
from histill.registry.origin import NOTE_TAG, add_command, describe_process
from histill.storage.scratch import scratch_folder
from histill.train.tracker import DataUse
from histill.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
PREVIOUS = "previous"
KIND = "register"  # kind of the run that holds a version's evidence
_LONGEST_TAG = 1000
_LOG = logging.getLogger(__name__)


def register(
    model_uri: str,
    registered_name: str,
    evidence: Mapping[str, bytes],
    tracking: Tracking,
    storage: Storage,
    expected_digest: str | None = None,
    origin: str | None = None,
    scored_on: DataUse | None = None,
) -> str:
    """Register a model folder; a model that is already registered (same digest) keeps its version.

    The version is an MLflow model (`mlflow_model.py`), a LoggedModel of the run that trained it. Its own MLflow run
    holds the files of `evidence` (path -> content): the model's score, of which `scored_on` are the tiles, or the
    search that found it. A version keeps the exported files that it was registered with: others know them by their
    checksums. The description says where the model is from: its `origin`, which is `model_uri` unless that is a
    temporary copy.

    Returns:
        The version's number.

    Raises:
        InputError: the folder holds no valid model, or its digest is not `expected_digest`; the server refuses.
    """
    uri = require_server_uri(tracking)
    client = connect(uri)
    from histill.registry.logged_model import find_training_run, log_model  # loads torch

    with scratch_folder() as folder:
        try:
            model_folder.copy(model_uri, folder, storage)
        except FileNotFoundError:
            raise InputError(
                f"{model_uri} is not a complete model folder; name another, or export it again.", code="model-missing"
            ) from None
        _, card, digest = model_folder.load(folder, storage)
        if expected_digest not in (None, digest):
            raise InputError(
                f"the model in {model_uri} changed while it was scored; run the same command again.",
                code="input-changed",
            )
        with server_errors(uri):
            _ensure_registered_model(client, registered_name)
            run_name = f"register-{registered_name}"
            known = min(_of_model(client, registered_name, digest), key=int, default=None)
            if known is not None:
                version = client.get_model_version(registered_name, known)
                run = client.get_run(version.run_id)
                new = _without_other_exports(client, version, evidence)
                _log_evidence(client, run.info.run_id, version.tags.get(LOGGED_MODEL_TAG), new, scored_on)
                if run.info.status == "RUNNING":  # a job was killed after it created the version
                    client.set_terminated(run.info.run_id)
                end_dead_runs(client, tracking.experiment, run_name, KIND)
                return known
            about = (
                f"`{card.encoder}` for tiles of {card.tile_px} px at {card.tile_mpp:g} um/px, registered from "
                f"`{origin or model_uri}`."
            )
            note = add_command(f"The files of a version of `{registered_name}`.\n\n- {about}")
            tags = {"kind": KIND, NOTE_TAG: note}
            run_id = begin_run(client, tracking.experiment, run_name, tags | describe_process())
            try:
                trained_by = find_training_run(model_uri, storage)
                model = log_model(client, run_id, registered_name, Path(folder), card, digest, evidence, trained_by)
                _log_evidence(client, run_id, model.model_id, evidence, scored_on)
                tags = {
                    LOGGED_MODEL_TAG: model.model_id,
                    "model_digest": digest,
                    "tiles_digest": card.tiles_digest,
                    "teacher_digest": card.teacher_digest or "none",
                    "histill": __version__,
                    **_license_tags(list_teachers(card)),
                }
                version = client.create_model_version(
                    registered_name, model.artifact_location, run_id, tags, description=about, model_id=model.model_id
                )
            except BaseException as error:
                MlflowTracker(uri, run_id).finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise
            client.set_terminated(run_id)
            return _the_only_one(client, registered_name, digest, version)


def _the_only_one(client: "MlflowClient", name: str, digest: str, version: "ModelVersion") -> str:
    """The version that another job has meanwhile created for the same model, if any; ours is then deleted.

    The server numbers versions consecutively: the lowest one stays, and every job that created a later one sees it.
    """
    own = str(version.version)
    lowest = min(_of_model(client, name, digest), key=int, default=own)
    if int(lowest) < int(own):
        client.delete_model_version(name, own)
        client.delete_logged_model(version.tags[LOGGED_MODEL_TAG])
        client.delete_run(version.run_id)
    return lowest


def _of_model(client: "MlflowClient", name: str, digest: str) -> list[str]:
    """The versions whose model has this digest."""
    found = client.search_model_versions(f"name = '{name}' and tag.model_digest = '{digest}'")
    return [str(each.version) for each in found]


def _license_tags(teachers: tuple[TaughtBy, ...]) -> dict[str, str]:
    """The licenses of all that taught a version, and whether they allow its commercial use."""
    licenses = [each.license for each in teachers]
    names = dict.fromkeys("not on record" if each is None else each.name for each in licenses)
    uses = [None if each is None else each.commercial for each in licenses]
    use = "forbidden" if False in uses else "not on record" if None in uses else "allowed"
    return {"taught_by.licenses": ", ".join(names)[:_LONGEST_TAG] or "none", "taught_by.commercial_use": use}


def _without_other_exports(
    client: "MlflowClient", version: "ModelVersion", evidence: Mapping[str, bytes]
) -> dict[str, bytes]:
    """`evidence` without its exported files if the version has others; the same ones may come with a new signature."""
    there = {each.path for each in client.list_artifacts(version.run_id, EXPORTS_FOLDER)}
    brought = {path for path in evidence if path.startswith(f"{EXPORTS_FOLDER}/")}
    if not there or not brought:
        return dict(evidence)
    sums = f"{EXPORTS_FOLDER}/{CHECKSUMS_NAME}"
    if sums in there and sums in brought:
        with scratch_folder() as folder:
            listed = Path(client.download_artifacts(version.run_id, sums, folder)).read_bytes()
        if listed == evidence[sums]:
            return dict(evidence)
    _LOG.warning(
        "version %s of %r keeps the files that it was registered with, which are others than those made now (by their "
        "formats, license, tiles or libraries); `histill export` makes files without a registry.",
        version.version,
        version.name,
    )
    return {path: data for path, data in evidence.items() if path not in brought}


def _log_evidence(
    client: "MlflowClient", run_id: str, logged: str | None, evidence: Mapping[str, bytes], scored_on: DataUse | None
) -> None:
    """Log the files of `evidence` to the run, and the figures among them as those of the LoggedModel `logged`."""
    # the checksums first: a job that is killed before the rest is there can be told by them, and repeated
    for path in sorted(evidence, key=lambda path: PurePosixPath(path).name != CHECKSUMS_NAME):
        log_file(client, run_id, path, evidence[path])
    if scored_on is not None and logged is not None:
        log_figures(client, run_id, logged, read_figures(evidence), scored_on)


def find_champion(registered_name: str, tracking: Tracking) -> str | None:
    """The number of the version with the alias `champion`, or None if there is none."""
    uri = require_server_uri(tracking)
    client = connect(uri)
    with server_errors(uri):
        return champion_version(client, registered_name)


def champion_version(client: "MlflowClient", registered_name: str) -> str | None:
    """As `find_champion`, with an existing client; raises MLflow's own errors."""
    version = find_version(client, registered_name, CHAMPION)
    return None if version is None else str(version.version)


def list_living_versions(client: "MlflowClient", registered_name: str) -> dict[str, str]:
    """The model digest of each existing version, by version number."""
    found = client.search_model_versions(f"name = '{registered_name}'")
    return {str(each.version): each.tags.get("model_digest", "") for each in found}


def has_versions(client: "MlflowClient", registered_name: str) -> bool:
    """Whether the registered model has a version."""
    return bool(client.search_model_versions(f"name = '{registered_name}'", max_results=1))


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise
