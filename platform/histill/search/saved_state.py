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
    """Whether `folder` (`uri` in messages) holds a state from which Tune can resume.

    Tune resumes the state of the newest start. If that is truncated, its files are removed, so that Tune falls back to
    the previous start. Raises HistillError when no start has left a complete state.
    """
    from pyarrow.fs import FileSelector

    names = [each.base_name for each in filesystem.get_file_info(FileSelector(folder, allow_not_found=True))]
    starts = sorted((name.removeprefix(_OF_START) for name in names if name.startswith(_OF_START)), reverse=True)
    if _WHOLE not in names or not starts:  # no trial was started
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
        f"Tune's state in {uri} is truncated, so the drawn trials are unknown; remove that folder and run the same "
        "command again: new trials are drawn, and the trained ones are kept next to it.",
        code="sweep-state-unusable",
    )


def _is_whole(filesystem: "FileSystem", path: str) -> bool:
    """Whether the JSON or pickle file (whatever its name) is complete; nothing is unpickled."""
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
