"""Track one run on MLflow; training continues when the connection breaks."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from histill.errors import HistillError
from histill.registry.datasets import describe_input, log_figures
from histill.registry.metric_spool import AT_ONCE, KnownSteps, MetricSpool, Status, Value, send_missing_values
from histill.registry.mlflow_client import connect, explain_error, log_file
from histill.storage.control import json_value
from histill.train.tracker import DataUse

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_VALUES = AT_ONCE
FLUSH_S = 5.0
CLOSE_S = 30.0
MOST_HELD = 100_000  # values held while the server is unreachable
_TABLES_TAG = "mlflow.loggedArtifacts"  # lists the artifacts that MLflow's UI shows as tables
_PARAMS_AT_ONCE = 100  # MLflow's limit
_LOG = logging.getLogger(__name__)


@dataclass
class _Outbox:
    """A tracker's state in the process that uses it; never pickled."""

    waiting: list[Value] = field(default_factory=list)
    known: KnownSteps | None = None  # steps the server had before this process; None: not asked yet
    flushed_at: float = field(default_factory=time.monotonic)
    sender: threading.Thread | None = None
    client: "MlflowClient | None" = None
    warned: bool = False
    held: int = 0  # values refused at least once


@dataclass(frozen=True)
class MlflowTracker:
    """Log metrics, parameters and pictures to the run `run_id` of the server at `uri`.

    The tracker is created on the driver and may be sent to another process: its pickle holds its destination only. No
    method raises because of the server: the first failure is logged as a warning. A thread sends metrics in batches,
    so a slow server does not slow training. While the server is unreachable they are held, and sent when it answers
    again; those left at the end go to a file below `unsent`, for `sync_metrics`. Pictures and parameters that are
    refused are lost. Values logged by an earlier process are kept: a resumed run repeats the steps since its last
    checkpoint, and sends only those that the server does not have.
    """

    uri: str
    run_id: str
    unsent: MetricSpool | None = None
    _outbox: _Outbox = field(default_factory=_Outbox, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return MlflowTracker, (self.uri, self.run_id, self.unsent)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at `step`; they are sent every 5 s, or once there are 500."""
        outbox = self._outbox
        now_ms = int(time.time() * 1000)
        outbox.waiting += [(name, float(value), now_ms, step) for name, value in values.items()]
        many = len(outbox.waiting) >= FLUSH_VALUES and not outbox.held
        if many or time.monotonic() - outbox.flushed_at >= FLUSH_S:
            self._flush(patience_s=0.0)

    def picture(self, name: str, png: bytes) -> None:
        """Record a picture (PNG bytes) as `pictures/<name>.png`."""
        self.file(f"pictures/{name}.png", png)

    def file(self, path: str, data: bytes) -> None:
        """Record `data` as the artifact `path`."""
        self._attempt(path, lambda client: log_file(client, self.run_id, path, data))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record rows with the same columns as the table `<name>.json`, which MLflow's UI shows."""
        path, columns = f"{name}.json", list(rows[0])
        data = {"columns": columns, "data": [[row[key] for key in columns] for row in rows]}
        # MLflow's own log_table would append to the rows that an interrupted job has recorded.
        self.file(path, json.dumps(json_value(data)).encode())
        shown = json.dumps([{"path": path, "type": "table"}])
        self._attempt("a table", lambda client: client.set_tag(self.run_id, _TABLES_TAG, shown))

    def data(self, uses: Sequence[DataUse]) -> None:
        """Record the tile sets that the run reads as MLflow's datasets."""

        def send(client: "MlflowClient") -> None:
            client.log_inputs(self.run_id, datasets=[describe_input(use) for use in uses])

        if uses:
            self._attempt("the tile set", send)

    def figures(self, values: Mapping[str, float], scored_on: DataUse, model_id: str) -> None:
        """Record figures of the logged model `model_id`, and the tile set that they are of."""
        self._attempt("figures", lambda client: log_figures(client, self.run_id, model_id, values, scored_on))

    def params(self, values: Mapping[str, str]) -> None:
        """Record parameters; MLflow refuses to change an existing one."""

        def send(client: "MlflowClient") -> None:
            from mlflow.entities import Param

            params = [Param(name, value) for name, value in values.items()]
            for start in range(0, len(params), _PARAMS_AT_ONCE):
                client.log_batch(self.run_id, params=params[start : start + _PARAMS_AT_ONCE])

        self._attempt("parameters", send)

    def flush(self) -> None:
        """Start sending the held values, unless a send is in progress."""
        self._flush(patience_s=0.0)

    def close(self) -> None:
        """Send the remaining values, for at most about 30 s; more may be recorded afterwards."""
        self._flush(patience_s=CLOSE_S)
        outbox = self._outbox
        if outbox.sender is not None and outbox.sender.is_alive():
            self._warn("the last metrics", f"did not answer within {CLOSE_S:.0f} s")
        elif outbox.waiting:
            values, outbox.waiting = outbox.waiting, []
            self._keep(values, None)

    def finish(self, status: Status) -> None:
        """Send the remaining values and set the run's status."""
        self.close()
        if not self._attempt("the run's status", lambda client: client.set_terminated(self.run_id, status)):
            self._keep([], status)

    def _keep(self, values: list[Value], status: Status | None) -> None:
        """Spool the unsent values for `sync_metrics`."""
        if self.unsent is None:
            return
        try:
            self.unsent.keep(self.uri, self.run_id, values, status)
        except HistillError as error:
            _LOG.warning("%d metrics of run %s are lost: %s", len(values), self.run_id, error)

    def _flush(self, patience_s: float) -> None:
        outbox = self._outbox
        if outbox.sender is not None:
            outbox.sender.join(patience_s)
            if outbox.sender.is_alive():
                return
        outbox.flushed_at = time.monotonic()
        if outbox.waiting and self._client() is not None:
            batch, outbox.waiting = outbox.waiting, []
            outbox.sender = threading.Thread(target=self._send, args=(batch,), name="histill-metrics", daemon=True)
            outbox.sender.start()
            outbox.sender.join(patience_s)

    def _send(self, batch: list[Value]) -> None:
        outbox = self._outbox

        def send(client: "MlflowClient") -> None:
            if outbox.known is None:
                outbox.known = KnownSteps.of(client, self.run_id)
            send_missing_values(client, self.run_id, batch, outbox.known)

        if self._attempt(f"{len(batch)} metrics", send):
            if outbox.held:
                _LOG.warning("the tracking server %s answers again; %d metrics were sent late.", self.uri, outbox.held)
                outbox.held = 0
            return
        outbox.known = None  # a part of the batch may have arrived
        outbox.waiting = (batch + outbox.waiting)[-MOST_HELD:]
        outbox.held = len(outbox.waiting)

    def _client(self) -> "MlflowClient | None":
        # Created in the caller's thread, never in the sender's: importing MLflow concurrently can deadlock.
        if self._outbox.client is None:
            try:
                self._outbox.client = connect(self.uri)
            except Exception as error:
                self._warn("everything", explain_error(error))
        return self._outbox.client

    def _attempt(self, what: str, send: "Callable[[MlflowClient], object]") -> bool:
        client = self._client()
        if client is None:
            return False
        try:
            send(client)
        except Exception as error:  # training must survive any server failure
            self._warn(what, explain_error(error))
            return False
        return True

    def _warn(self, what: str, said: str) -> None:
        if not self._outbox.warned:
            self._outbox.warned = True
            later = "are missing there" if self.unsent is None else f"wait for it (in the end below {self.unsent.uri})"
            _LOG.warning(
                "the tracking server %s %s; training continues, and %s of run %s and what else it refuses %s.",
                *(self.uri, said, what, self.run_id, later),
            )
