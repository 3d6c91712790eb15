"""Control files, read and written whole: manifest headers, run records, reports."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from histill.config.common import Storage
from histill.storage.filesystems import control_filesystem, storage_errors, writing_errors
from histill.storage.folders import probe_folder
from histill.storage.scheme import Content, scheme_of
from histill.storage.uris import is_remote, join, local_path

_TAGS = ("ETag", "etag", "created")  # where fsspec's file systems report an object's version, the most reliable first


@dataclass(frozen=True)
class ObjectState:
    """An object's size in bytes, and a tag that changes when it is replaced; empty if the storage reports none."""

    size: int
    tag: str


def read_bytes(uri: str, storage: Storage) -> bytes:
    """Read a file. Raises FileNotFoundError, and InputError when the storage refuses."""
    filesystem, path = control_filesystem(uri, storage)
    with storage_errors(uri, storage):
        data: bytes = filesystem.cat_file(path)
    return data


def read_head(uri: str, count: int, storage: Storage) -> bytes:
    """Read the first `count` bytes, or all of fewer, of a file that is not empty. Raises as `read_bytes` does."""
    filesystem, path = control_filesystem(uri, storage)
    with storage_errors(uri, storage):
        data: bytes = filesystem.cat_file(path, start=0, end=count)
    return data


def write_bytes(uri: str, data: Content, storage: Storage) -> None:
    """Write a file atomically: a reader sees the old one or the new one, never a part."""
    filesystem, path = control_filesystem(uri, storage)
    with writing_errors(uri, storage):
        scheme_of(uri).overwrite(filesystem, path, data)


def create_bytes(uri: str, data: bytes, storage: Storage) -> bool:
    """Create a file atomically unless it exists; return whether it holds `data` now.

    Of several concurrent writers one wins. All that write the same `data` succeed, so a writer that must be the only
    one has to include something unique. (This also lets a writer succeed whose request was retried because only the
    reply was lost.)
    """
    filesystem, path = control_filesystem(uri, storage)
    with writing_errors(uri, storage):
        return scheme_of(uri).create(filesystem, path, data) or _holds(uri, data, storage)


def swap_bytes(uri: str, expected: bytes, data: bytes, storage: Storage) -> bool:
    """Replace a file atomically if it holds `expected`; return whether it holds `data` now. Of several, one wins."""
    filesystem, path = control_filesystem(uri, storage)
    with writing_errors(uri, storage):
        return scheme_of(uri).swap(filesystem, path, expected, data) or _holds(uri, data, storage)


def _holds(uri: str, data: bytes, storage: Storage) -> bool:
    try:
        return read_bytes(uri, storage) == data
    except FileNotFoundError:
        return False


def exists(uri: str, storage: Storage) -> bool:
    """Whether the file exists. Raises InputError when the storage refuses."""
    filesystem, path = control_filesystem(uri, storage)
    with storage_errors(uri, storage):
        try:
            filesystem.info(path)
        except FileNotFoundError as error:
            if any(text in str(error) for text in scheme_of(uri).errors.missing_bucket):
                raise
            return False
    return True


def describe(uri: str, storage: Storage) -> ObjectState:
    """The state of an object. Raises FileNotFoundError, and InputError when the storage refuses."""
    filesystem, path = control_filesystem(uri, storage)
    with storage_errors(uri, storage):
        return _state_of(filesystem.info(path))


def _state_of(about: Mapping[str, Any]) -> ObjectState:
    tag = next((str(about[key]) for key in _TAGS if key in about), "")
    return ObjectState(int(about["size"]), tag.strip(chr(34)))


def describe_files(uri: str, storage: Storage) -> dict[str, ObjectState]:
    """The states of the files directly below the folder `uri`, by name, ascending; empty if there is no such folder."""
    found = {each["name"].rpartition("/")[2]: each for each in _below(uri, storage) if each["type"] == "file"}
    return {name: _state_of(found[name]) for name in sorted(found)}


def list_files(uri: str, storage: Storage) -> list[str]:
    """The files directly below the folder `uri`, ascending; empty if there is no such folder."""
    return sorted(f"{uri.rstrip('/')}/{name}" for name in list_sizes(uri, storage))


def measure_files(uri: str, names: Iterable[str], storage: Storage) -> dict[str, int]:
    """The sizes in bytes of those of `names`, paths below the folder `uri`, that exist. Lists each folder once."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    found: dict[str, int] = {}
    for folder, wanted in folders.items():
        there = list_sizes(join(uri, folder) if folder else uri, storage)
        found |= {name: there[base] for name in wanted if (base := name.rpartition("/")[2]) in there}
    return found


def list_folders(uri: str, storage: Storage) -> list[str]:
    """The folders directly below the folder `uri`, ascending; empty if there is no such folder."""
    found = (each["name"] for each in _below(uri, storage) if each["type"] == "directory")
    return sorted(f"{uri.rstrip('/')}/{name.rstrip('/').rpartition('/')[2]}" for name in found)


def list_sizes(uri: str, storage: Storage) -> dict[str, int]:
    """The sizes in bytes of the files directly below the folder `uri`, by name; empty if there is no such folder."""
    found = _below(uri, storage)
    return {each["name"].rpartition("/")[2]: int(each["size"]) for each in found if each["type"] == "file"}


def _below(uri: str, storage: Storage) -> list[dict[str, Any]]:
    """fsspec's description of each file and folder directly below `uri`."""
    filesystem, path = control_filesystem(uri, storage)
    with storage_errors(uri, storage):
        try:
            found = filesystem.ls(path, detail=True, refresh=True)
        except FileNotFoundError:
            return []
    return list(found)


def remove(uri: str, storage: Storage) -> None:
    """Remove one file. Raises FileNotFoundError, and InputError when the storage refuses."""
    filesystem, path = control_filesystem(uri, storage)
    with storage_errors(uri, storage):
        filesystem.rm_file(path)


def write_json(uri: str, value: Any, storage: Storage) -> None:
    """Write `value` as indented JSON with sorted keys."""
    write_bytes(uri, json_bytes(value), storage)


def json_bytes(value: Any) -> bytes:
    """The file that `write_json` writes for `value`."""
    text = json.dumps(json_value(value), indent=2, sort_keys=True, allow_nan=False)
    return f"{text}\n".encode()


def json_value(value: Any) -> Any:
    """`value` with None in place of nan and infinity, which JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def probe(uri: str, storage: Storage) -> None:
    """Check that a job can write below `uri`, by writing and removing something there.

    Missing local folders are not created, so that a job that is refused later leaves nothing behind. Raises InputError
    when the storage cannot be reached, or refuses the credentials or the write.
    """
    if not is_remote(uri):
        with writing_errors(uri, storage):
            probe_folder(local_path(uri))
        return
    filesystem, path = control_filesystem(join(uri, ".probe"), storage)
    # Read first: a server that creates missing buckets on the first write would hide a misspelt name.
    with contextlib.suppress(FileNotFoundError), storage_errors(uri, storage):
        filesystem.cat_file(path)
    with storage_errors(uri, storage):
        scheme_of(uri).overwrite(filesystem, path, b"")
        filesystem.rm_file(path)
