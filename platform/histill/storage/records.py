"""Records: small JSON files, each a pydantic model, read strictly and written whole."""

import textwrap
from typing import ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from histill.config.base import Strict
from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import json_bytes, read_bytes, write_bytes


class Record(Strict):
    """What a JSON file holds; its fields are the file's keys. Lists become tuples, unknown keys are refused."""

    noun: ClassVar[str]
    """What the file is, as `a manifest`."""
    remedy: ClassVar[str]
    """What to do about a file that is none, as `ingest the tiles again`."""


R = TypeVar("R", bound=Record)


def read_record(kind: type[R], uri: str, storage: Storage) -> R:
    """The record in the file `uri`. Raises FileNotFoundError, and InputError where it is cut short or another."""
    return parse_record(kind, read_bytes(uri, storage), uri)


def parse_record(kind: type[R], data: bytes, uri: str) -> R:
    """The record in `data`, the bytes of the file `uri`. Raises InputError where it is cut short or another."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _refuse(kind, uri, error) from None


def parse_records(kind: type[R], data: bytes, uri: str) -> tuple[R, ...]:
    """As `parse_record`, of a file that holds a list of records."""
    try:
        return TypeAdapter(tuple[kind, ...]).validate_json(data)  # type: ignore[valid-type]
    except ValidationError as error:
        raise _refuse(kind, uri, error) from None


def write_record(record: Record, uri: str, storage: Storage) -> None:
    """Write the file whole: a reader sees the old one or the new one."""
    write_bytes(uri, record_bytes(record), storage)


def record_bytes(record: Record) -> bytes:
    """The file that holds `record`: indented JSON with sorted keys, null for nan."""
    return json_bytes(record.model_dump(mode="json"))


def _refuse(kind: type[Record], uri: str, error: ValidationError) -> InputError:
    """A sentence with the first fault, its key and value."""
    fault = error.errors(include_url=False)[0]
    key = ".".join(map(str, fault["loc"]))
    value = f" is {fault['input']!r}" if key and fault["type"] != "missing" else ""
    said = textwrap.shorten(f"{key}{value}: {fault['msg']}".removeprefix(": "), 200, placeholder=" ...")
    return InputError(f"{uri} is not {kind.noun} of this version ({said}); {kind.remedy}.")
