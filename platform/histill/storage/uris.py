"""URIs: plain local paths or s3://bucket/key."""

import os

from histill.config.places import is_windows, name_foreign, path_of_file_address
from histill.config.redact import redact
from histill.errors import InputError


def is_s3(uri: str) -> bool:
    """Whether `uri` lies in object storage."""
    return uri.startswith("s3://")


def bucket_of(uri: str) -> str | None:
    """The bucket that `uri` lies in; None where it is a local path."""
    return uri.removeprefix("s3://").partition("/")[0] if is_s3(uri) else None


def local_path(uri: str) -> str:
    """The absolute path that a `uri` outside object storage names. Raises InputError for other kinds of addresses."""
    return os.path.abspath(_path_or_s3(uri))


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def beside(uri: str, relative: str) -> str:
    """The URI of `relative`, a path as written in the file `uri`; absolute ones stay as they are.

    Raises InputError for a path of Windows, and for an address of another kind than s3://.
    """
    relative = _path_or_s3(relative)
    if is_s3(relative) or os.path.isabs(relative):
        return relative
    folder = uri.rpartition("/")[0]
    return f"{folder}/{relative}" if folder else relative


def name_within(folder: str, uri: str) -> str | None:
    """What `uri` is called from within `folder`; None where it lies elsewhere."""
    root, place = (each.rstrip("/") if is_s3(each) else os.path.abspath(each) for each in (folder, uri))
    return place.removeprefix(f"{root}/") if place.startswith(f"{root}/") else None


def folder_name(uri: str) -> str:
    """The last part of `uri`."""
    return (uri.rstrip("/") if is_s3(uri) else os.path.abspath(uri)).rpartition("/")[2]


def stem(uri: str) -> str:
    """The file's name without folder and extension."""
    return os.path.splitext(uri.rstrip("/").rpartition("/")[2])[0]


def _path_or_s3(uri: str) -> str:
    """`uri`, or the path that a file:// address names. Raises InputError for other kinds of addresses."""
    if (path := path_of_file_address(uri)) is not None:
        return path
    said = "a path of Windows is not read here" if is_windows(uri) else name_foreign(uri)
    if said is not None:
        raise InputError(f"{redact(uri)} cannot be used: {said}.")
    return uri
