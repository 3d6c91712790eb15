"""Say where a tracked run comes from, in the tags that MLflow's pages show: user, command and commit."""

import contextlib
import getpass
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from histill import version
from histill.config.redact import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE_TAG = "mlflow.note.content"  # the description on a run's page
_USER, _SOURCE, _KIND, _COMMIT = "mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit"
_GIT_S = 5


def describe_process() -> dict[str, str]:
    """The tags of a run that this process starts."""
    tags = {_SOURCE: Path(sys.argv[0]).name, _KIND: "LOCAL"}  # MLflow shows what follows the last slash alone
    with contextlib.suppress(OSError, KeyError):  # no user of this number, as in some containers
        tags[_USER] = getpass.getuser()
    if (commit := _find_commit()) is not None:
        tags[_COMMIT] = commit
    return tags


def add_command(note: str) -> str:
    """The description `note`, which ends with a list in Markdown, with the command line of this process."""
    return f"{note}\n- command: `{redact(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))}`"


def inherit_origin(client: "MlflowClient", parent: str) -> Mapping[str, str]:
    """The tags of a run that belongs to the run `parent`, and is started by a process of the cluster."""
    known = client.get_run(parent).data.tags
    return {name: known[name] for name in (_USER, _SOURCE, _KIND, _COMMIT) if name in known}


def _find_commit() -> str | None:
    """The git commit of this code; None if it is installed, rather than run from a checkout."""
    file = Path(version.__file__)

    def ask(*words: str) -> str:
        command = ["git", "-C", str(file.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_S).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", file.name)  # a virtual environment may lie in someone else's checkout
        return ask("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
