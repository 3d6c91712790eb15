"""Find the newest checkpoint of a run, whether or not Ray Train has recorded it.

Ray Train records about one report a second, and does not resume from a checkpoint that it had not recorded when the job
ended. Each checkpoint lists its own files, so an incomplete one is recognized.
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
METADATA_NAME = ".metadata.json"  # named by Ray: the metrics reported with the checkpoint
_NOTES_NAME = "checkpoint_manager_snapshot.json"  # written by Ray Train: the checkpoints it has recorded


def list_contents(folder: str) -> None:
    """Write the names and sizes of the files in the local `folder` to its contents file; call it last."""
    sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
    with open(os.path.join(folder, CONTENTS_NAME), "w", encoding="utf-8") as file:
        json.dump(sizes, file, indent=2)


def find_newest_checkpoint(filesystem: "FileSystem", folder: str) -> str | None:
    """The path of the newest complete checkpoint in the run's `folder`."""
    from pyarrow.fs import FileSelector

    found = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
    paths = sorted((each.path for each in found if is_checkpoint(each.base_name)), key=step_of, reverse=True)
    return next((path for path in paths if _whole(filesystem, path)), None)


def read_metrics(filesystem: "FileSystem", path: str) -> dict[str, float]:
    """The metrics reported with the complete checkpoint at `path`."""
    metrics: dict[str, float] = _json(filesystem, f"{path}/{METADATA_NAME}")
    return metrics


def step_of(path: str) -> int:
    """The global step of the checkpoint at `path`."""
    return int(os.path.basename(path.rstrip("/")).removeprefix(CHECKPOINTS))


def is_known_to_ray(filesystem: "FileSystem", folder: str) -> bool:
    """Whether Ray Train has recorded a checkpoint of the run in `folder`, complete or not."""
    from pyarrow.fs import FileType

    return bool(filesystem.get_file_info(f"{folder}/{_NOTES_NAME}").type == FileType.File)


def drop_broken_state(filesystem: "FileSystem", folder: str, version: str) -> bool:
    """Remove Ray Train's state file of the run in `folder` if Ray of this `version` would reject it on every start.

    That is a file that is truncated, from another Ray version, or names missing checkpoints. Returns whether the file
    was removed and no complete checkpoint is left: without it the newest one is still found, unless a version of
    histill that wrote no contents file made it.
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
        _json(filesystem, f"{path}/{METADATA_NAME}")
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
