"""Spool metrics to files while the tracking server is unreachable, and send them once it is back."""

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from histill.config.common import Storage
from histill.config.sync_metrics import SyncConfig
from histill.registry.mlflow_client import check_reachable, connect, server_errors
from histill.storage.control import list_files, remove
from histill.storage.records import Record, read_record, write_record
from histill.storage.uris import join

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]
Value = tuple[str, float, int, int]  # name, value, ms since 1970, step
AT_ONCE = 500


class UnsentMetrics(Record):
    """One batch of metrics that a run could not send."""

    noun: ClassVar[str] = "a file of metrics that were not sent"
    remedy: ClassVar[str] = "move it elsewhere, and send the others"

    server: str
    run_id: str
    values: tuple[tuple[str, str, int, int], ...] = Field(
        description="name, value as text (JSON knows no nan), ms since 1970, step"
    )
    status: Status | None


@dataclass(frozen=True)
class MetricSpool:
    """A folder of unsent metrics."""

    uri: str
    storage: Storage

    def keep(self, server: str, run_id: str, values: Sequence[Value], status: Status | None) -> None:
        """Write values and status to a new file. Raises InputError when the storage refuses."""
        rows = tuple((name, str(value), ms, step) for name, value, ms, step in values)
        record = UnsentMetrics(server=server, run_id=run_id, values=rows, status=status)
        write_record(record, join(self.uri, f"{uuid.uuid4().hex}.json"), self.storage)


@dataclass(frozen=True)
class SyncReport:
    """How many metrics were sent, and to how many runs."""

    metrics: int
    runs: int


def sync_metrics(config: SyncConfig) -> SyncReport:
    """Send the metrics that runs have spooled in `config.unsent`, each value once, and remove the files sent.

    Raises InputError when a server still does not answer, or refuses; unsent files are kept.
    """
    metrics, runs = 0, set()
    for file in list_files(config.unsent, config.storage):
        try:
            record = read_record(UnsentMetrics, file, config.storage)
        except FileNotFoundError:
            continue  # another process has sent it meanwhile
        uri, run_id = record.server, record.run_id
        check_reachable(uri)
        client = connect(uri)
        values = [(name, float(value), ms, step) for name, value, ms, step in record.values]
        with server_errors(uri):
            metrics += send_missing_values(client, run_id, values, KnownSteps.of(client, run_id))
            if record.status is not None:
                client.set_terminated(run_id, record.status)
        with contextlib.suppress(FileNotFoundError):
            remove(file, config.storage)
        runs.add(run_id)
    return SyncReport(metrics, len(runs))


@dataclass(frozen=True)
class KnownSteps:
    """The steps of a run's metrics that the server had when asked."""

    last: dict[str, int]  # newest step of each metric
    all: dict[str, set[int]] = field(default_factory=dict)  # all steps, for metrics that needed the lookup

    @classmethod
    def of(cls, client: "MlflowClient", run_id: str) -> "KnownSteps":
        return cls({metric.key: metric.step for metric in client.get_run(run_id).data.to_proto().metrics})


def send_missing_values(client: "MlflowClient", run_id: str, values: Sequence[Value], known: KnownSteps) -> int:
    """Send the values that the server does not have at their step; return their number.

    All steps of a metric are fetched only if a value is older than its newest step, as values sent late are.
    """
    from mlflow.entities import Metric

    late = {name for name, _, _, step in values if step <= known.last.get(name, -1)}
    for name in late - known.all.keys():
        known.all[name] = {metric.step for metric in client.get_metric_history(run_id, name)}
    metrics = [Metric(*value) for value in values if value[3] not in known.all.get(value[0], ())]
    for start in range(0, len(metrics), AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + AT_ONCE])
    return len(metrics)
