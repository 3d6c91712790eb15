"""MLflow runs: one per logical run, however often its job is restarted."""

import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from histill.config.base import Strict
from histill.config.common import Storage, Tracking
from histill.config.sync_metrics import SyncConfig
from histill.errors import HistillError, InputError
from histill.registry.dead_runs import OWNER_TAG, close_dead_runs, owner
from histill.registry.metric_spool import MetricSpool, sync_metrics
from histill.registry.mlflow_client import (
    check_reachable,
    connect,
    error_code,
    server_errors,
    server_uri,
    strip_userinfo,
)
from histill.registry.mlflow_tracker import MlflowTracker
from histill.registry.origin import NOTE_TAG, add_command, describe_process, inherit_origin
from histill.train.tracker import DataUse
from histill.version import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_VALUE = 500
_LOG = logging.getLogger(__name__)


def open_run(
    tracking: Tracking,
    *,
    name: str,
    kind: str,
    config: Strict,
    run_id: str | None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    note: str | None = None,
    data: Sequence[DataUse] = (),
    unsent: str | None = None,
    storage: Storage = Storage(),  # noqa: B008 - frozen
) -> MlflowTracker | None:
    """Start the MLflow run of a logical run, or resume it.

    Args:
        tracking: the server and the experiment, which is created if missing.
        name: the run's name.
        kind: what the run does (`train_teacher`, `pretrain`, `search`, `trial`, ...); becomes a tag.
        config: flattened into parameters. If a resumed run's configuration has changed, the parameters stay, since
            MLflow's are immutable, and the new values become tags `resumed.<key>`.
        run_id: the run to resume; None starts one. The caller keeps the `run_id` of the returned tracker, since a run
            that the server has lost is replaced by a new one.
        parent: id of the parent run.
        tags: further tags.
        note: a new run's description, in Markdown, which ends with a list; the command line is added to it.
        data: tile sets that the run reads.
        unsent: folder in `storage` for metrics that could not be sent; those that earlier runs left in it are sent
            now. None: such metrics are lost.
        storage: access to `unsent`.

    Returns:
        The run's tracker, or None when no server is configured.

    Raises:
        InputError: the server cannot be reached or refuses.
    """
    uri = server_uri(tracking)
    if uri is None:
        return None
    check_reachable(uri)
    client = connect(uri)
    all_tags = {"kind": kind, **_versions(), **(tags or {})}
    params = flatten_params(config)
    kept = None if unsent is None else MetricSpool(unsent, storage)
    with server_errors(uri):
        run = None if run_id is None else find_run(client, run_id)
        if run is not None:
            _resume_run(client, run, params, all_tags | {OWNER_TAG: owner()})
            tracker = MlflowTracker(uri, run.info.run_id, kept)
        else:
            if run_id is not None:
                _LOG.warning("the tracking server %s has lost run %s; continuing with a new one.", uri, run_id)
            about = {"mlflow.parentRunId": parent, **inherit_origin(client, parent)} if parent else describe_process()
            about |= {NOTE_TAG: note if parent else add_command(note)} if note else {}
            tracker = MlflowTracker(uri, begin_run(client, tracking.experiment, name, all_tags | about), kept)
            tracker.data(data)
    tracker.params(params if run is None else {key: params[key] for key in params.keys() - run.data.params})
    if kept is not None:
        _send_earlier(kept)
    return tracker


def _send_earlier(kept: MetricSpool) -> None:
    """Send the metrics that earlier runs have left; a failure does not stop this run."""
    try:
        sent = sync_metrics(SyncConfig(unsent=kept.uri, storage=kept.storage))
    except HistillError as error:
        _LOG.warning("metrics of earlier runs stay in %s: %s", kept.uri, error)
        return
    if sent.metrics:
        _LOG.warning("%d metrics of earlier runs were sent from %s.", sent.metrics, kept.uri)


def begin_run(client: "MlflowClient", experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Create a run in `experiment`, which is created if missing; returns the run's id.

    Runs of the same name and kind that a killed process left running are closed.
    """
    clean = {key: strip_userinfo(value) for key, value in tags.items()} | {OWNER_TAG: owner()}
    experiment_id = _experiment_id(client, experiment)
    close_dead_runs(client, experiment_id, name, tags["kind"])
    return str(client.create_run(experiment_id, run_name=name, tags=clean).info.run_id)


def end_dead_runs(client: "MlflowClient", experiment: str, name: str, kind: str) -> None:
    """Close runs of this name and kind in `experiment` that a killed process left running."""
    close_dead_runs(client, _experiment_id(client, experiment), name, kind)


def flatten_params(config: Strict) -> dict[str, str]:
    """A configuration as dotted key -> text of at most 500 characters, without user and password in URLs."""
    return dict(_flat(config.model_dump(mode="json"), ""))


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
        return
    text = strip_userinfo(value if isinstance(value, str) else json.dumps(value))
    yield key, text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."


def find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The run, or None if it is unknown to the server or was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _resume_run(client: "MlflowClient", run: "Run", params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Set the run to RUNNING again, with current tags and the changed parameters."""
    client.update_run(run.info.run_id, status="RUNNING")
    known = run.data.params
    changed = {f"resumed.{key}": value for key, value in params.items() if key in known and known[key] != value}
    for key, value in {**tags, **changed}.items():
        if run.data.tags.get(key) != value:
            client.set_tag(run.info.run_id, key, strip_userinfo(value))


def _experiment_id(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another job has created it
    if experiment is None or experiment.lifecycle_stage != "active":
        raise InputError(
            f"tracking.experiment {name!r} was deleted; restore it in MLflow or name another.",
            code="experiment-deleted",
        )
    return str(experiment.experiment_id)


def _versions() -> dict[str, str]:
    """Package versions, read from the installed metadata: importing Ray or torch would take seconds."""
    installed = {package: metadata.version(package) for package in ("torch", "ray")}
    return {"histill": __version__, "python": platform.python_version(), **installed}
