"""Verify the files of a registered version: their checksums, and the signature of these."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from histill.artifacts.checksums import CHECKSUMS_NAME, check_files
from histill.artifacts.signature import SIGNATURE_NAME, verify_checksums
from histill.registry.evidence import EXPORTS_FOLDER
from histill.storage.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_PROOF = (CHECKSUMS_NAME, SIGNATURE_NAME)


def verify_version(
    client: "MlflowClient", version: "ModelVersion", files: Mapping[str, bytes], public_key: str | None
) -> None:
    """Compare `files` (name -> content) of a version with its checksums, and these with their signature.

    A signature is asked for where there is a `public_key`. A version of an earlier histill, or of a search, has neither
    checksums nor a signature. Raises InputError when one differs or the signature is missing, and MLflow's own errors.
    """
    with scratch_folder() as scratch:
        found = {Path(each.path).name: each.path for each in client.list_artifacts(version.run_id, EXPORTS_FOLDER)}
        proof = {
            name: Path(client.download_artifacts(version.run_id, found[name], scratch)).read_bytes()
            for name in _PROOF
            if name in found
        }
    _verify(files, proof, public_key, f"version {version.version} of {version.name!r}")


def verify_evidence(evidence: Mapping[str, bytes], public_key: str | None, origin: str) -> None:
    """As `verify_version`, of the exported files among the `evidence` (path -> content) of the version `origin`."""
    inside = PurePosixPath(EXPORTS_FOLDER)
    files = {
        PurePosixPath(path).relative_to(inside).as_posix(): data
        for path, data in evidence.items()
        if PurePosixPath(path).is_relative_to(inside)
    }
    proof = {name: files.pop(name) for name in _PROOF if name in files}
    _verify(files, proof, public_key, origin)


def _verify(files: Mapping[str, bytes], proof: Mapping[str, bytes], public_key: str | None, origin: str) -> None:
    checksums = proof.get(CHECKSUMS_NAME)
    if public_key is not None:
        verify_checksums(checksums or b"", proof.get(SIGNATURE_NAME), public_key, origin)
    if checksums is not None:
        check_files(files, checksums, origin)
