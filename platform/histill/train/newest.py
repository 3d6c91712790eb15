"""The newest checkpoint of a run, whether or not Ray Train has come to know of it.

Ray Train notes one report a second or so, and what it has not noted when a job ends it does not go on from, although
the checkpoint is there. A checkpoint says which files it consists of, so one that was not written to its end is told.
"""

import json
import os
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from histill.train.run_folder import CHECKPOINTS, is_checkpoint

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CONTENTS_NAME = "contents.json"
_CONTENTS = TypeAdapter(dict[str, int], config={"strict": True})  # bytes of each file
_METADATA_NAME = ".metadata.json"  # Ray's, of what was reported with the checkpoint
_NOTES_NAME = "checkpoint_manager_snapshot.json"  # Ray Train's, of the checkpoints that it knows


def list_contents(folder: str) -> None:
    """Write, as the last of them, the list of the files in the local `folder` and their sizes."""
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
    with open(os.path.join(folder, CONTENTS_NAME), "w", encoding="utf-8") as file:
        json.dump(sizes, file, indent=2)


def find_newest_checkpoint(filesystem: "FileSystem", folder: str) -> str | None:
    """The path of the newest checkpoint in the run's `folder` that is whole."""
    from pyarrow.fs import FileSelector

    found = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
    paths = sorted((each.path for each in found if is_checkpoint(each.base_name)), key=step_of, reverse=True)
    return next((path for path in paths if _whole(filesystem, path)), None)


def step_of(path: str) -> int:
    """How many steps of the run the checkpoint at `path` comes after."""
    return int(os.path.basename(path.rstrip("/")).removeprefix(CHECKPOINTS))


def drop_broken_state(filesystem: "FileSystem", folder: str, version: str) -> bool:
    """Remove Ray Train's notes of the run in `folder` where Ray of this `version` would refuse them for good.

    They were cut short, are another version's, or name checkpoints that are gone. The newest checkpoint is found
    without them, unless an older version of this package has written it; whether there is none any more to go on from.
    """
    path = f"{folder}/{_NOTES_NAME}"
    try:
        notes = _json(filesystem, path)
        names = [each["checkpoint_dir_name"] for each in notes["checkpoint_results"]]
        sound = notes["ray_version"] == version
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        names, sound = [], False
    if sound and all(_is_there(filesystem, f"{folder}/{name}") for name in names):
        return False
    filesystem.delete_file(path)
    return find_newest_checkpoint(filesystem, folder) is None


def _whole(filesystem: "FileSystem", path: str) -> bool:
    try:
        sizes = _CONTENTS.validate_python(_json(filesystem, f"{path}/{CONTENTS_NAME}"))
        _json(filesystem, f"{path}/{_METADATA_NAME}")
    except (FileNotFoundError, ValueError):
        return False
    found = filesystem.get_file_info([f"{path}/{name}" for name in sizes])
    return [each.size for each in found] == list(sizes.values())


def _json(filesystem: "FileSystem", path: str) -> Any:
    with filesystem.open_input_file(path) as file:
        return json.loads(file.readall())


def _is_there(filesystem: "FileSystem", path: str) -> bool:
    from pyarrow.fs import FileSelector

    return bool(filesystem.get_file_info(FileSelector(path, allow_not_found=True)))
