"""Sign a version with a key, and verify it, as Sigstore's model signing does (https://github.com/sigstore/model-transparency).

What is signed is the list of checksums, by which every other file is known: each can be verified by itself, without
those that were not fetched.
"""

import contextlib
import importlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from histill.artifacts.checksums import CHECKSUMS_NAME
from histill.errors import InputError
from histill.storage.scratch import scratch_folder

SIGNATURE_NAME = f"{CHECKSUMS_NAME}.sig"


def check_signing_key(key: str) -> None:
    """Raise InputError unless `key` is a file that can sign, so that nothing is scored in vain."""
    sign_checksums(b"", key)


def sign_checksums(checksums: bytes, key: str) -> bytes:
    """The signature of a list of checksums by the private key in the PEM file `key`: a Sigstore bundle, JSON.

    Raises InputError when the package is missing, or the file holds no elliptic-curve key of NIST without a password.
    """
    signing = _import("signing")
    with _files(checksums) as (signed, signature):
        try:
            signing.Config().use_elliptic_key_signer(private_key=key).sign(signed, signature)
        except (OSError, TypeError, ValueError, AttributeError) as error:
            raise _no_key(key, "private", error) from None
        return signature.read_bytes()


def verify_checksums(checksums: bytes, signature: bytes | None, key: str, origin: str) -> None:
    """Verify the signature of a list of checksums by the public key in the PEM file `key`; `origin` is for the error.

    Raises InputError when there is no signature, when it is of another key or another list, and as `sign_checksums`.
    """
    if signature is None:
        raise InputError(
            f"{origin} is not signed; promote it again with signing_key, or leave tracking.public_key out.",
            code="signature-wrong",
        )
    verifying = _import("verifying")
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise _no_key(key, "public", error) from None
    with _files(checksums) as (signed, path), contextlib.redirect_stdout(io.StringIO()):  # which is for the job's line
        path.write_bytes(signature)
        try:
            verifier.verify(signed, path)
        except Exception:  # ValueError, and whatever its parsers raise for a damaged bundle
            raise InputError(
                f"the signature of {origin} is not of the key {os.path.basename(key)}, or its {CHECKSUMS_NAME} was "
                "changed; fetch it again, and if it stays so investigate who changed it.",
                code="signature-wrong",
            ) from None


@contextlib.contextmanager
def _files(checksums: bytes) -> Iterator[tuple[Path, Path]]:
    """The list as a file of its own name, which is signed with it, and a place for its signature."""
    with scratch_folder() as folder:
        signed = Path(folder, CHECKSUMS_NAME)
        signed.write_bytes(checksums)
        yield signed, Path(folder, SIGNATURE_NAME)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ModuleNotFoundError as error:  # model-signing 1.1.1 does not declare that it needs pyOpenSSL
        raise InputError(
            f"signatures need the package {error.name}, which is not installed; `pip install 'histill[signing]'`.",
            code="package-missing",
        ) from None


def _no_key(key: str, kind: str, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "it holds no such key"
    return InputError(
        f"{key} cannot be used as {kind} key ({reason}); name a PEM file with an elliptic-curve key of the curve "
        "P-256, P-384 or P-521, without a password.",
        code="key-unusable",
    )
