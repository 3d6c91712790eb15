"""The run folder: the run's record, its completion marker and its result."""

import hashlib
import json
import re
from collections.abc import Collection
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from histill.artifacts.model_folder import FINISHED_NAME, FinishedRun
from histill.config.runs import RunConfig
from histill.errors import InputError
from histill.storage.control import exists
from histill.storage.records import Record, read_record, write_record
from histill.storage.uris import join, name_within

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CHECKPOINTS = "step-"  # prefix of checkpoint folders
RECORD_NAME = "run.json"
# Keys that may differ when a run resumes, because they do not affect what is computed.
_MAY_CHANGE = {
    "workers",
    "storage",
    "tracking",
    "max_failures",
    "concurrent",
    "register_best",
    "checkpoint_every",
    "data.decode",
    "data.decode_nodes",
    "data.reader",  # earlier name of data.decode
    "data.read_threads",
    "data.decode_threads",
    "data.cache_decoded",
    "data.keep_decoded",  # earlier name of data.cache_decoded
    "data.max_corrupt",
}
_LICENSES = {"license", "weights_license"}  # of anything: they may be put on record later


class RunRecord(Record):
    """A run's configuration and inputs, recorded at its first start."""

    noun: ClassVar[str] = "the record of a run"
    remedy: ClassVar[str] = "choose another name for the run"

    kind: str
    config: dict[str, Any]
    tracking_run: str | None = Field(None, description="id of its MLflow run, the same across restarts")
    inputs: dict[str, str] = Field(default_factory=dict, description="digests of the run's inputs, by key")

    @property
    def digest(self) -> str:
        """SHA-256 of the kind and of the keys that affect what is computed."""
        return hashlib.sha256(json.dumps([self.kind, _fixed(self.config)], sort_keys=True).encode()).hexdigest()


def run_uri(config: RunConfig) -> str:
    """URI of the run folder."""
    return join(config.runs, config.name)


def open_record(config: RunConfig) -> RunRecord:
    """Read the run's record, or make a new one, not yet written, at its first start.

    Raises InputError when the run is finished, or was started with another configuration.
    """
    uri = run_uri(config)
    fresh = RunRecord(kind=config.kind, config=config.model_dump(mode="json"))
    if exists(join(uri, FINISHED_NAME), config.storage):
        raise InputError(
            f"run {uri} is finished; score and promote it as it is, or choose another name, with "
            f"continue_from={uri} to train it longer.",
            code="run-finished",
        )
    try:
        record = read_record(RunRecord, join(uri, RECORD_NAME), config.storage)
    except FileNotFoundError:
        return fresh
    if record.digest != fresh.digest:
        raise InputError(
            f"run {uri} was started with another configuration ({_difference(record, fresh)}); choose another name.",
            code="run-of-other-config",
        )
    return record


def check_same_inputs(config: RunConfig, record: RunRecord, digests: dict[str, str]) -> None:
    """Raise InputError, naming the key, when the run of `record` was started from inputs other than `digests`."""
    for key, digest in record.inputs.items():
        if digests.get(key, digest) != digest:
            raise InputError(
                f"run {run_uri(config)} was started when {key} held {digest[:12]}, and it holds {digests[key][:12]} "
                "now; restore the original, or choose another name.",
                code="input-changed",
            )


def save_record(config: RunConfig, record: RunRecord) -> None:
    """Write the record, before training starts."""
    write_record(record, join(run_uri(config), RECORD_NAME), config.storage)


def read_result(config: RunConfig) -> FinishedRun | None:
    """Read the result of a finished run; None while it is unfinished."""
    try:
        return read_record(FinishedRun, join(run_uri(config), FINISHED_NAME), config.storage)
    except FileNotFoundError:
        return None


def write_result(config: RunConfig, model: str, metrics: dict[str, float]) -> None:
    """Mark the run finished, with its final model folder and metrics.

    The model's name relative to the run folder is stored too, so that the folder can be moved or copied.
    """
    found = FinishedRun(model=model, name=name_within(run_uri(config), model), metrics=metrics)
    write_record(found, join(run_uri(config), FINISHED_NAME), config.storage)


def is_checkpoint(name: str) -> bool:
    """Whether `name` is one that a run gives to a checkpoint folder; manual copies have other names."""
    return re.fullmatch(rf"{CHECKPOINTS}[0-9]{{8,}}", name) is not None


def remove_orphans(filesystem: "FileSystem", folder: str, kept: Collection[str]) -> None:
    """Remove the checkpoints not in `kept`: earlier ones, and those left incomplete by lost workers."""
    from pyarrow.fs import FileSelector

    for found in filesystem.get_file_info(FileSelector(folder)):
        if is_checkpoint(found.base_name) and found.base_name not in kept:
            filesystem.delete_dir(found.path)


def _difference(old: RunRecord, new: RunRecord) -> str:
    if old.kind != new.kind:
        return f"it is a {old.kind} run"
    before, now = _fixed(old.config), _fixed(new.config)
    key = next(key for key in {**before, **now} if key not in before or key not in now or before[key] != now[key])
    return f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that affect what is computed: dotted key -> value; without nulls, which older records lack."""
    flat = {key: value for key, value in _flat(config).items() if value is not None}
    fixed = {key: flat[key] for key in flat if _MAY_CHANGE.isdisjoint(accumulate(key.split("."), "{}.{}".format))}
    return {key: value for key, value in fixed.items() if not _LICENSES & set(key.split("."))}


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat
