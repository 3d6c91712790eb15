"""URIs: plain local paths or scheme://bucket/key."""

import os

from histill.config.places import describe_foreign, is_windows, parse_file_url, remote_scheme
from histill.config.redact import redact
from histill.errors import InputError


def is_remote(uri: str) -> bool:
    """Whether `uri` is in object storage, where folders, links and dots have no meaning."""
    return remote_scheme(uri) is not None


def bucket_of(uri: str) -> str | None:
    """The bucket of `uri`; None for a local path."""
    return path_within(uri).partition("/")[0] if is_remote(uri) else None


def path_within(uri: str) -> str:
    """The path of `uri` in a file system of its scheme: `bucket/key`, or an absolute local path."""
    return uri.partition("://")[2].rstrip("/") if is_remote(uri) else local_path(uri)


def uri_like(uri: str, path: str) -> str:
    """The URI of `path`, a path within the file system of `uri`."""
    scheme = remote_scheme(uri)
    return path if scheme is None else f"{scheme}://{path}"


def absolute(uri: str) -> str:
    """`uri`, made independent of the working directory."""
    return uri if is_remote(uri) else local_path(uri)


def without_dots(uri: str) -> str:
    """`uri` without `.` and `..` in object storage, which does not resolve them; doubled slashes are kept."""
    if not is_remote(uri):
        return uri
    kept: list[str] = []
    bucket, *parts = uri.partition("://")[2].split("/")
    for part in parts:
        if part == "..":
            kept = kept[:-1]
        elif part != ".":
            kept.append(part)
    return uri_like(uri, "/".join([bucket, *kept]))


def local_path(uri: str) -> str:
    """The absolute path that a `uri` outside object storage names. Raises InputError for other kinds of addresses."""
    return os.path.abspath(_path_or_remote(uri))


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def beside(uri: str, relative: str) -> str:
    """The URI of `relative`, a path as written in the file `uri`; absolute ones stay as they are.

    Raises InputError for a Windows path, and for an address of an unsupported kind.
    """
    relative = _path_or_remote(relative)
    if is_remote(relative) or os.path.isabs(relative):
        return relative
    folder = uri.rpartition("/")[0]
    return f"{folder}/{relative}" if folder else relative


def folder_of(uri: str) -> str:
    """The folder that the file `uri` lies in."""
    return uri.rpartition("/")[0] if is_remote(uri) else os.path.dirname(local_path(uri))


def name_within(folder: str, uri: str) -> str | None:
    """The path of `uri` relative to `folder`; None if it is not below it."""
    root, place = (each.rstrip("/") if is_remote(each) else os.path.abspath(each) for each in (folder, uri))
    return place.removeprefix(f"{root}/") if place.startswith(f"{root}/") else None


def folder_name(uri: str) -> str:
    """The last part of `uri`."""
    return (uri.rstrip("/") if is_remote(uri) else os.path.abspath(uri)).rpartition("/")[2]


def stem(uri: str) -> str:
    """The file's name without its folder and extension."""
    return os.path.splitext(uri.rstrip("/").rpartition("/")[2])[0]


def _path_or_remote(uri: str) -> str:
    """`uri`, or the path that a file:// address names. Raises InputError for other kinds of addresses."""
    if (path := parse_file_url(uri)) is not None:
        return path
    said = "a path of Windows is not read here" if is_windows(uri) else describe_foreign(uri)
    if said is not None:
        raise InputError(f"{redact(uri)} cannot be used: {said}.", code="storage-unusable")
    return uri
