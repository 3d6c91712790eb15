"""SHA-256 of a model's files, in the form that `sha256sum --check` reads, and their verification."""

import hashlib
from collections.abc import Mapping

from histill.errors import InputError

CHECKSUMS_NAME = "SHA256SUMS"


def hash_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 of each file, hexadecimal, by path."""
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def list_checksums(files: Mapping[str, bytes]) -> bytes:
    """The list of `files` (path -> content), sorted by path: a line for each, with its SHA-256."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(hash_files(files).items())).encode()


def check_files(files: Mapping[str, bytes], checksums: bytes, origin: str) -> None:
    """Raise InputError for the first of `files` (path -> content) that `checksums` does not list, or not so.

    `origin` is where both are from, for the error.
    """
    lines = checksums.decode(errors="replace").splitlines()
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    for path, data in files.items():
        check_file(path, data, listed.get(path, "none"), origin)


def check_file(path: str, data: bytes, expected: str, origin: str) -> None:
    """Raise InputError unless `data`, of the file `path` of `origin`, has the SHA-256 `expected`."""
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        raise InputError(
            f"{path} of {origin} is not the file that was written (its SHA-256 begins with {digest[:12]}, "
            f"{expected[:12]} was expected); fetch it again, and if it stays so investigate who changed it.",
            code="file-changed",
        )
