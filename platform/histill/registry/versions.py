"""Versions of registered models: the model folder, its score and its lineage."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from histill.artifacts import model_folder
from histill.artifacts.lineage import list_teachers
from histill.artifacts.model_folder import TaughtBy
from histill.config.common import Storage, Tracking
from histill.errors import InputError
from histill.registry.mlflow_client import connect, error_code, log_file, require_server_uri, server_errors
from histill.registry.mlflow_runs import begin_run, end_dead_runs
from histill.registry.mlflow_tracker import MlflowTracker
from histill.registry.origin import NOTE_TAG, add_command, describe_process
from histill.storage.scratch import scratch_folder
from histill.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
PREVIOUS = "previous"
KIND = "register"  # kind of the run that holds a version's files
MODEL_FOLDER = "model"
_LONGEST_TAG = 1000
SCORE_PATH = "score.json"
PICTURE_PATH = "pictures/comparison.png"
_MODELS_URI = re.compile(r"^models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))$")


def register(
    model_uri: str,
    registered_name: str,
    evidence: Mapping[str, bytes],
    tracking: Tracking,
    storage: Storage,
    expected_digest: str | None = None,
    origin: str | None = None,
) -> str:
    """Register a model folder; a model that is already registered (same digest) keeps its version.

    The version's MLflow run holds `model/` (the folder's two files) and the files of `evidence` (path -> content): the
    model's score, or the search that found it. The description says where the model is from: its `origin`, which is
    `model_uri` unless that is a temporary copy.

    Returns:
        The version's number.

    Raises:
        InputError: the folder holds no valid model, or its digest is not `expected_digest`; the server refuses.
    """
    uri = require_server_uri(tracking)
    client = connect(uri)
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
                run = client.get_run(client.get_model_version(registered_name, known).run_id)
                _log(client, run.info.run_id, evidence)
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
                source = _upload(client, run_id, folder)
                _log(client, run_id, evidence)
                tags = {
                    "model_digest": digest,
                    "tiles_digest": card.tiles_digest,
                    "teacher_digest": card.teacher_digest or "none",
                    "histill": __version__,
                    **_license_tags(list_teachers(card)),
                }
                version = client.create_model_version(
                    registered_name, source=source, run_id=run_id, tags=tags, description=about
                )
            except BaseException as error:
                MlflowTracker(uri, run_id).finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise
            client.set_terminated(run_id)
            return _the_only_one(client, registered_name, digest, str(version.version), run_id)


def _the_only_one(client: "MlflowClient", name: str, digest: str, version: str, run_id: str) -> str:
    """The version that another job has meanwhile created for the same model, if any; ours is then deleted.

    The server numbers versions consecutively: the lowest one stays, and every job that created a later one sees it.
    """
    lowest = min(_of_model(client, name, digest), key=int, default=version)
    if int(lowest) < int(version):
        client.delete_model_version(name, version)
        client.delete_run(run_id)
        return lowest
    return version


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


def _upload(client: "MlflowClient", run_id: str, folder: str) -> str:
    """Store a version's model folder; returns its URI."""
    for name in (model_folder.WEIGHTS_NAME, model_folder.CARD_NAME):
        client.log_artifact(run_id, str(Path(folder, name)), MODEL_FOLDER)
    return f"{client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"


def _log(client: "MlflowClient", run_id: str, evidence: Mapping[str, bytes]) -> None:
    for path, content in evidence.items():
        log_file(client, run_id, path, content)


def find_champion(registered_name: str, tracking: Tracking) -> str | None:
    """The number of the version with the alias `champion`, or None if there is none."""
    uri = require_server_uri(tracking)
    client = connect(uri)
    with server_errors(uri):
        return champion_version(client, registered_name)


def champion_version(client: "MlflowClient", registered_name: str) -> str | None:
    """As `find_champion`, with an existing client; raises MLflow's own errors."""
    version = _find(client, registered_name, CHAMPION)
    return None if version is None else str(version.version)


def download_version(registered_name: str, alias_or_version: str, folder: Path, tracking: Tracking) -> str:
    """Download a version's model folder into the existing local `folder`; returns the model folder's path.

    Raises InputError when there is no such version, or its files are not the registered ones.
    """
    uri = require_server_uri(tracking)
    client = connect(uri)
    import mlflow.artifacts  # after `connect`, which sets environment variables that MLflow reads on import

    with server_errors(uri):
        version = _find(client, registered_name, alias_or_version)
        if version is None:
            raise InputError(
                f"the registry at {uri} has no version or alias {alias_or_version!r} of {registered_name!r}; "
                "see the model's page there for those it has.",
                code="version-missing",
            )
        for name in (model_folder.WEIGHTS_NAME, model_folder.CARD_NAME):
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"{version.source}/{name}", dst_path=str(folder), tracking_uri=uri
            )
    card = model_folder.read_card(str(folder), Storage())
    digest = model_folder.digest_of(card, (folder / model_folder.WEIGHTS_NAME).read_bytes())
    if digest != version.tags.get("model_digest"):
        raise InputError(
            f"the files of version {version.version} of {registered_name!r} are not those that were "
            "registered; register the model again and investigate who changed them.",
            code="version-changed",
        )
    return str(folder)


def read_evidence(registered_name: str, version: str, folder: Path, tracking: Tracking) -> dict[str, bytes]:
    """The evidence files of a version, path -> content; `folder` is an existing local folder to download into."""
    uri = require_server_uri(tracking)
    client = connect(uri)
    import mlflow.artifacts

    with server_errors(uri):
        run_id = client.get_model_version(registered_name, version).run_id
        mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(folder), tracking_uri=uri)
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {path: data for path, data in found.items() if not path.startswith(f"{MODEL_FOLDER}/")}


def list_living_versions(client: "MlflowClient", registered_name: str) -> dict[str, str]:
    """The model digest of each existing version, by version number."""
    found = client.search_model_versions(f"name = '{registered_name}'")
    return {str(each.version): each.tags.get("model_digest", "") for each in found}


def has_versions(client: "MlflowClient", registered_name: str) -> bool:
    """Whether the registered model has a version."""
    return bool(client.search_model_versions(f"name = '{registered_name}'", max_results=1))


def fetch_model(uri: str, tracking: Tracking, into: Path) -> str:
    """Resolve `uri` to a model folder that can be read without the registry.

    `models:/name@alias` and `models:/name/3` are downloaded into the existing local folder `into`; any other
    URI is returned unchanged. Raises InputError when there is no such version.
    """
    if not uri.startswith("models:"):
        return uri
    match = _MODELS_URI.match(uri)
    if match is None:
        raise InputError(
            f"{uri} names no version of a registered model; write models:/name@alias or models:/name/3.",
            code="version-missing",
        )
    return download_version(match["name"], match["alias"] or match["version"], into, tracking)


def _find(client: "MlflowClient", name: str, alias_or_version: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        if alias_or_version.isdecimal():
            return client.get_model_version(name, alias_or_version)
        return client.get_model_version_by_alias(name, alias_or_version)
    except MlflowException as error:
        if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
            return None
        if error_code(error) == "INVALID_PARAMETER_VALUE" and "not found" in str(
            error
        ):  # MLflow's answer for an unknown alias
            return None
        raise


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise
