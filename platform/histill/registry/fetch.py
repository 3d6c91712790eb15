"""Fetch a version of a registered model: its model folder, and the files it was judged by."""

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from histill.artifacts import model_folder
from histill.artifacts.model_folder import ONNX_NAME
from histill.config.common import Storage, Tracking
from histill.errors import InputError
from histill.registry.mlflow_client import connect, error_code, require_server_uri, server_errors
from histill.registry.verification import verify_evidence, verify_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

LOGGED_MODEL_TAG = "logged_model"  # of a version: the id of its LoggedModel
_MODEL_FOLDER = "model"  # in the run of a version that is no LoggedModel, as older ones are not
_MODELS_URI = re.compile(r"^models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))$")


def fetch_model(uri: str, tracking: Tracking, into: Path, *, with_onnx: bool = False) -> str:
    """Resolve `uri` to a model folder that can be read without the registry.

    `models:/name@alias` and `models:/name/3` are downloaded into the existing local folder `into` as `download_version`
    does; any other URI is returned unchanged. Raises InputError when there is no such version.
    """
    if not uri.startswith("models:"):
        return uri
    return download_version(*_parse(uri), into, tracking, with_onnx=with_onnx)


def download_version(
    registered_name: str, alias_or_version: str, folder: Path, tracking: Tracking, *, with_onnx: bool = False
) -> str:
    """Download a version's model folder into the existing local `folder`; returns the model folder's path.

    With `with_onnx` the version's ONNX file, if it has one, is put beside its weights.

    Raises InputError when there is no such version, its files are not the registered ones, or it lacks the signature
    that `tracking.public_key` asks for.
    """
    uri = require_server_uri(tracking)
    client = connect(uri)
    import mlflow.artifacts  # after `connect`, which sets environment variables that MLflow reads on import

    names = [model_folder.WEIGHTS_NAME, model_folder.CARD_NAME]
    with server_errors(uri):
        version = find_version(client, registered_name, alias_or_version)
        if version is None:
            raise InputError(
                f"the registry at {uri} has no version or alias {alias_or_version!r} of {registered_name!r}; "
                "see the model's page there for those it has.",
                code="version-missing",
            )
        if with_onnx:
            listed = mlflow.artifacts.list_artifacts(artifact_uri=version.source, tracking_uri=uri)
            names += [ONNX_NAME] if any(PurePosixPath(each.path).name == ONNX_NAME for each in listed) else []
        for name in names:
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
    files = {name: (folder / name).read_bytes() for name in names}
    with server_errors(uri):
        verify_version(client, version, files, tracking.public_key)
    return str(folder)


def read_evidence(registered_name: str, version: str, folder: Path, tracking: Tracking) -> dict[str, bytes]:
    """The evidence files of a version, path -> content; `folder` is an existing local folder to download into.

    Raises InputError when an exported file is not the registered one, or the signature that `tracking.public_key` asks
    for is missing.
    """
    uri = require_server_uri(tracking)
    client = connect(uri)
    import mlflow.artifacts

    with server_errors(uri):
        run_id = client.get_model_version(registered_name, version).run_id
        mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(folder), tracking_uri=uri)
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    evidence = {path: data for path, data in found.items() if not path.startswith(f"{_MODEL_FOLDER}/")}
    verify_evidence(evidence, tracking.public_key, f"version {version} of {registered_name!r}")
    return evidence


def find_logged_model(uri: str, tracking: Tracking) -> str | None:
    """The id of the LoggedModel of the version `uri`, such as `models:/name@alias`.

    None for another kind of URI, and for a version from before versions were logged models. Raises InputError when
    there is no server.
    """
    if not uri.startswith("models:"):
        return None
    server = require_server_uri(tracking)
    with server_errors(server):
        version = find_version(connect(server), *_parse(uri))
    return None if version is None else version.tags.get(LOGGED_MODEL_TAG)


def _parse(uri: str) -> tuple[str, str]:
    """The name, and the alias or version, of a `models:` URI."""
    match = _MODELS_URI.match(uri)
    if match is None:
        raise InputError(
            f"{uri} names no version of a registered model; write models:/name@alias or models:/name/3.",
            code="version-missing",
        )
    return match["name"], match["alias"] or match["version"]


def find_version(client: "MlflowClient", name: str, alias_or_version: str) -> "ModelVersion | None":
    """The version; None if there is no such version, alias or model. Raises MLflow's own errors."""
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
