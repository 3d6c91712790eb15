"""One pretraining run, submitted to a site from outside, and the checks of its result."""

import json
import math
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from mlflow import MlflowClient

from chaos.fault_runs.checkpoint_observer import CheckpointObserver, against_plan
from chaos.fault_runs.tiles import BATCH, Setting
from testbed.site import Site

JOB = "jobs/pretrain_student.py"
EXPERIMENT = "faults"
_WAIT_S = 300.0
_GOING_ON = re.compile(r": resuming from step (\d+) with (\d+) worker")
_SHOWN = re.compile(r" (\d+)/\d+ tiles ")


@dataclass(frozen=True)
class Moment:
    """The progress of a run, as seen from outside."""

    at: float
    steps: int
    resumptions: int


@dataclass
class Run:
    """A run as its user sees it. `start` may be called again for the same name."""

    site: Site
    setting: Setting
    name: str
    changes: dict[str, str] = field(default_factory=dict)
    injected: int = 0
    notes: list[str] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)  # from a fault to the first checkpoint of a new step
    behind: list[int] = field(default_factory=list)  # steps done before the fault and repeated after it
    _starts: int = 0
    _kept: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Run":
        self.observer = self._kept.enter_context(
            CheckpointObserver(self.site.s3, f"{self.site.s3.bucket}/runs/{self.name}")
        )
        self.client = MlflowClient(self.site.tracking.uri, self.site.tracking.uri)
        self.log = self.site.folder / f"{self.name}.log"
        self.log.touch()
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.ended:
            self._stop()
        self._kept.close()

    def _stop(self) -> None:
        """End the job, so that the next one has the cluster to itself."""
        self.site.stop(self._submission)
        self.process.kill()
        self.process.wait()

    def keys(self) -> dict[str, str]:
        """The run's configuration."""
        return {
            "name": self.name,
            "runs": f"s3://{self.site.s3.bucket}/runs",
            "data.tiles": self.setting.tiles,
            "data.batch_size": str(BATCH),
            "student.encoder": "csat_tiny",
            "student.decoder_channels": "[16, 16, 8, 8, 8]",
            "teacher.classical": "true",
            "optimizer.epochs": "32",
            "tracking.experiment": EXPERIMENT,
            "checkpoint_every": "4",
            "max_failures": "50",
            "workers.count": "2",
        } | self.changes

    def start(self) -> None:
        """Submit the job."""
        self._starts += 1
        self._submission = f"{self.name}-{self._starts}"
        self._said_before, self._resumed_before = len(self._console()), len(self.resumptions())
        arguments = [f"{key}={value}" for key, value in self.keys().items()]
        self.process = self.site.submit(JOB, *arguments, log=self.log, submission=self._submission)

    def _console(self) -> str:
        return self.log.read_text(errors="replace")

    def steps(self) -> int:
        """Number of steps proved by checkpoints."""
        return max(
            (observation.steps(self.setting.per_epoch) for observation in list(self.observer.seen.values())),
            default=0,
        )

    def resumptions(self) -> list[tuple[int, int]]:
        """The step from which each later worker group resumed, and its size, from the console."""
        return [(int(step), int(workers)) for step, workers in _GOING_ON.findall(self._console())]

    def now(self) -> Moment:
        """The run's current progress."""
        text = self._console()
        shown = [int(tiles) // BATCH for tiles in _SHOWN.findall(text)[-1:]]
        return Moment(time.time(), max([self.steps(), *shown]), len(_GOING_ON.findall(text)))

    @property
    def epochs(self) -> int:
        """Number of epochs of the run."""
        return int(self.keys()["optimizer.epochs"])

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.process.poll() is not None

    def wait_for_steps(self, steps: int, timeout_s: float = _WAIT_S) -> bool:
        """Wait until a checkpoint is seen after `steps` or more; False if the run ends or stalls before."""
        arrived = self.wait_until(lambda: self.steps() >= steps, timeout_s)
        if not arrived and not self.ended:
            self.notes.append(f"stood still after step {self.steps()}")
        return arrived

    def wait_until(self, true: Callable[[], bool], timeout_s: float = _WAIT_S) -> bool:
        """Wait until `true()`; False if the run ends or the timeout expires before."""
        deadline = time.monotonic() + timeout_s
        while not true():
            if self.ended or time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def resumed_after(self, fault: Moment) -> bool:
        """Wait until new workers have resumed and saved a new step; record how long it took.

        A checkpoint that was being written when the fault occurred does not count.
        """
        # Ray repeats the last lines of a failed job, so a new job's lines are counted from its start.
        if not self.wait_until(lambda: len(self.resumptions()) > max(fault.resumptions, self._resumed_before)):
            self.notes.append("no worker went on")
            return False
        began, from_step = time.time(), self.resumptions()[-1][0]

        def saved() -> list[float]:
            observations = list(self.observer.seen.values())
            new = [observation for observation in observations if observation.steps(self.setting.per_epoch) > from_step]
            return [observation.seen_at for observation in new if observation.seen_at > began]

        if not self.wait_until(lambda: bool(saved())):
            self.notes.append(f"nothing was saved after step {from_step}")
            return False
        self.resumed_s.append(min(saved()) - fault.at)
        self.behind.append(max(0, fault.steps - from_step))
        return True

    def finish(self, timeout_s: float = 600.0) -> str:
        """Wait for the job's end; return its output since the last start."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.notes.append(f"not ended within {timeout_s:.0f} s")
            self._stop()
        return self._console()[self._said_before :]

    def last_words(self) -> str:
        """The job's own output, without Ray's."""
        lines = self._console()[self._said_before :].splitlines()
        return "\n".join(line for line in lines if not re.match(r"\S+ \S+\s+(INFO|SUCC|WARNING|ERR)\b", line))[-1500:]

    def verdict(self, reference: Mapping[str, float] | None) -> "Verdict":
        """Check the finished run."""
        text = self.finish()
        self._kept.close()
        faults = list(self.notes)
        found = re.findall(r"^\{.*\}$", text, re.MULTILINE)
        if self.process.returncode or not found:
            faults.append(f"the job ended with {self.process.returncode}: {self.last_words()[-400:]}")
        metrics: dict[str, Any] = json.loads(found[-1])["metrics"] if found else {}
        lost, repeated, ledgers = against_plan(self.observer.seen, self.setting.batches[: self.epochs])
        if lost or repeated:
            faults.append(f"{lost} tiles lost, {repeated} repeated")
        faults += self._history()
        left = self.observer.left()
        if metrics and (len(left) > 2 or left[-1:] != [f"step-{int(metrics['step']):08d}"]):
            faults.append(f"checkpoints left: {left}")
        difference = math.nan
        if metrics and reference:
            difference = abs(metrics["loss"] - reference["loss"]) / reference["loss"]
            if not difference < 0.01:
                faults.append(f"loss {metrics['loss']:.4f} instead of {reference['loss']:.4f}")
        return Verdict(
            name=self.name,
            injected=self.injected,
            lost=lost,
            repeated=repeated,
            ledgers=ledgers,
            loss_difference=difference,
            resumed_s=self.resumed_s,
            behind=self.behind,
            faults=faults,
            metrics=metrics,
        )

    def _history(self) -> list[str]:
        """The faults of the run's MLflow record."""
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        runs = self.client.search_runs([experiment.experiment_id], f"attributes.run_name = '{self.name}'")
        if len(runs) != 1 or runs[0].info.status != "FINISHED":
            return [f"MLflow has the runs {[run.info.status for run in runs]}"]
        faults = []
        whole = [self.setting.per_epoch * epoch for epoch in range(1, self.epochs + 1)]
        for metric in ("epoch/loss", "val/dice"):
            steps = [value.step for value in self.client.get_metric_history(runs[0].info.run_id, metric)]
            if steps != whole:
                faults.append(f"{metric} has the steps {steps}")
        steps = [value.step for value in self.client.get_metric_history(runs[0].info.run_id, "train/loss")]
        # Reported every few seconds: a resumed run may add a step between those that were reported before it was lost.
        if not steps or len(set(steps)) < len(steps):
            faults.append(f"train/loss has the steps {steps}")
        return faults


@dataclass(frozen=True)
class Verdict:
    """The checks of a finished run: `faults` is empty if all passed."""

    name: str
    injected: int
    faults: list[str]
    lost: int = 0
    repeated: int = 0
    ledgers: int = 0
    loss_difference: float = math.nan  # relative; not a number: nothing was compared
    resumed_s: Sequence[float] = ()
    behind: Sequence[int] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def survived(self) -> int:
        """The number of faults that the run has survived."""
        return 0 if self.faults else self.injected
