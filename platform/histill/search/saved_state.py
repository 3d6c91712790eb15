"""Check whether Tune's saved state of a sweep can be resumed after a job was killed while writing it."""

import json
import pickle
import pickletools
from collections import deque
from typing import TYPE_CHECKING

from histill.errors import HistillError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_WHOLE, _OF_START = "tuner.pkl", "experiment_state-"


def can_resume(filesystem: "FileSystem", folder: str, uri: str) -> bool:
    """Whether there is a state in `folder`, which people know as `uri`, from which Tune can resume.

    Tune takes the newest start's state. Where that is cut short its files are removed, and the state of the start
    before is taken. Raises HistillError when no start has left one that is whole.
    """
    from pyarrow.fs import FileSelector

    names = [each.base_name for each in filesystem.get_file_info(FileSelector(folder, allow_not_found=True))]
    starts = sorted((name.removeprefix(_OF_START) for name in names if name.startswith(_OF_START)), reverse=True)
    if _WHOLE not in names or not starts:  # no trial was begun
        return False
    broken: list[str] = []
    for start in (each.removesuffix(".json") for each in starts):
        files = [f"{folder}/{name}" for name in names if name.rpartition(".")[0].endswith(start)]
        if all(_is_whole(filesystem, path) for path in [*files, f"{folder}/{_WHOLE}"]):
            for path in broken:
                filesystem.delete_file(path)
            return True
        broken += files
    raise HistillError(
        f"Tune's state in {uri} is cut short, so it is not known which trials were drawn; remove that folder and give "
        "the same command again: trials are drawn anew, and those that were trained stay beside it."
    )


def _is_whole(filesystem: "FileSystem", path: str) -> bool:
    """Whether the JSON or the pickle (whatever Tune names it) comes to its end; nothing is unpickled."""
    with filesystem.open_input_file(path) as file:
        content = file.readall()
    try:
        if content.startswith(pickle.PROTO):
            deque(pickletools.genops(content), maxlen=0)
        else:
            json.loads(content)
    except ValueError:
        return False
    return True
