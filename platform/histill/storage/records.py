"""Records: small JSON files, each a pydantic model, read strictly and written whole."""

import textwrap
from typing import ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from histill.config.base import Strict
from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import json_bytes, read_bytes, write_bytes


class Record(Strict):
    """The content of a JSON file; its fields are the file's keys. Lists become tuples, unknown keys are refused."""

    noun: ClassVar[str]
    """What errors call the file, such as `a manifest`."""
    remedy: ClassVar[str]
    """What to do about an invalid file, such as `ingest the tiles again`."""


R = TypeVar("R", bound=Record)


def read_record(kind: type[R], uri: str, storage: Storage) -> R:
    """Read the record in file `uri`. Raises FileNotFoundError, and InputError if it is truncated or of another kind."""
    return parse_record(kind, read_bytes(uri, storage), uri)


def parse_record(kind: type[R], data: bytes, uri: str) -> R:
    """Parse `data`, the bytes of the file `uri`. Raises InputError if it is truncated or of another kind."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _refuse(kind, uri, error) from None


def parse_records(kind: type[R], data: bytes, uri: str) -> tuple[R, ...]:
    """Like `parse_record`, for a file that holds a list of records."""
    try:
        return TypeAdapter(tuple[kind, ...]).validate_json(data)  # type: ignore[valid-type]
    except ValidationError as error:
        raise _refuse(kind, uri, error) from None


def write_record(record: Record, uri: str, storage: Storage) -> None:
    """Write the file atomically: a reader sees the old one or the new one."""
    write_bytes(uri, record_bytes(record), storage)


def record_bytes(record: Record) -> bytes:
    """The file that holds `record`: indented JSON with sorted keys, null for nan."""
    return json_bytes(record.model_dump(mode="json"))


def _refuse(kind: type[Record], uri: str, error: ValidationError) -> InputError:
    """An InputError with the first fault, its key and its value."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(map(str, fault["loc"]))
    value = f" is {fault['input']!r}" if key and fault["type"] != "missing" else ""
    said = textwrap.shorten(f"{key}{value}: {fault['msg']}".removeprefix(": "), 200, placeholder=" ...")
    return InputError(f"{uri} is not {kind.noun} of this version ({said}); {kind.remedy}.", code="other-version")
