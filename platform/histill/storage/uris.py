"""URIs: plain local paths or s3://bucket/key."""

import os


def is_s3(uri: str) -> bool:
    """Whether `uri` lies in object storage."""
    return uri.startswith("s3://")


def bucket_of(uri: str) -> str | None:
    """The bucket that `uri` lies in; None where it is a local path."""
    return uri.removeprefix("s3://").partition("/")[0] if is_s3(uri) else None


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def beside(uri: str, relative: str) -> str:
    """The URI of `relative`, a path as written in the file `uri`; absolute ones stay as they are."""
    if is_s3(relative) or os.path.isabs(relative):
        return relative
    folder = uri.rpartition("/")[0]
    return f"{folder}/{relative}" if folder else relative


def stem(uri: str) -> str:
    """The file's name without folder and extension."""
    return os.path.splitext(uri.rstrip("/").rpartition("/")[2])[0]
