"""The other files of a slide that consists of several: MIRAX, DICOM, Hamamatsu's VMS and VMU."""

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from histill.config.common import Storage
from histill.storage.control import ObjectState, describe_files, read_bytes, read_head
from histill.storage.uris import folder_of

MIRAX, DICOM, HAMAMATSU = ".mrxs", ".dcm", (".vms", ".vmu")
READERS = 8  # heads of files read concurrently
_HEAD = 64 * 2**10  # bytes of a DICOM file that are searched for its series
# Series Instance UID and Rows, which follows it, in explicit little endian, as all but two transfer syntaxes (PS3.5, A)
_SERIES = re.compile(rb"\x20\x00\x0e\x00UI(?P<length>..)(?P<uid>[0-9.]+)", re.DOTALL)
_ROWS = b"\x28\x00\x10\x00US"
_VALUE = re.compile(rb"^[^\[#=]+=\s*(.+?)\s*$", re.MULTILINE)  # of a key file, which is an INI file


def consists_of_several(uri: str) -> bool:
    """Whether a slide is in a multi-file format, by the extension of its file."""
    return _extension(uri) in (MIRAX, DICOM, *HAMAMATSU)


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head`, 132 bytes or more, is DICOM (PS3.10, 7.1)."""
    return head[128:132] == b"DICM"


def list_companions(uri: str, storage: Storage) -> dict[str, ObjectState]:
    """The other files of a slide in object storage, by their names relative to its folder; empty if it is one file.

    They are the files in the folder with its name (MIRAX), those in its own folder with the same extension (DICOM),
    and those that it names (VMS, VMU). Raises errors as `read_bytes` does.
    """
    extension, folder = _extension(uri), folder_of(uri)
    if extension == MIRAX:
        base = os.path.splitext(uri)[0]
        beside = describe_files(base, storage)
        return {f"{os.path.basename(base)}/{name}": state for name, state in beside.items() if _is_name(name)}
    if extension in HAMAMATSU:
        named = {value.decode(errors="replace") for value in _VALUE.findall(read_bytes(uri, storage))}
        return {name: state for name, state in describe_files(folder, storage).items() if name in named}
    return list_alike(uri, storage) if extension == DICOM else {}


def list_alike(uri: str, storage: Storage) -> dict[str, ObjectState]:
    """The other files in the folder of the object `uri` with the same extension, as `list_companions`."""
    own, alike = os.path.basename(uri), describe_files(folder_of(uri), storage)
    return {
        name: state
        for name, state in alike.items()
        if name != own and _is_name(name) and _extension(name) == _extension(own)
    }


def of_same_series(uri: str, files: Mapping[str, ObjectState], storage: Storage) -> list[str]:
    """Those of some files in the folder of the DICOM file `uri` that may belong to the same series.

    A folder may hold many slides. Files whose series is not found in their first bytes are not left out.
    """
    folder, names = folder_of(uri), [name for name, state in files.items() if state.size]

    def find(name: str) -> set[bytes]:
        return _find_series(read_head(f"{folder}/{name}", _HEAD, storage))

    own = find(os.path.basename(uri))
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(find, names))
    return [name for name, series in zip(names, found, strict=True) if not own or not series or own & series]


def _find_series(head: bytes) -> set[bytes]:
    """The series that the first bytes of a DICOM file name, its own and those that it refers to; empty if unsure."""
    if not is_dicom(head) or _ROWS not in head:
        return set()
    return {each["uid"][: int.from_bytes(each["length"], "little")] for each in _SERIES.finditer(head)}


def _is_name(name: str) -> bool:
    """Whether an object's name can be that of a file."""
    return name not in ("", ".", "..")


def _extension(uri: str) -> str:
    return os.path.splitext(uri)[1].lower()
