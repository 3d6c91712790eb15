"""One run of pretraining, submitted from outside to a site, and what its end must look like."""

import json
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mlflow import MlflowClient

from fault_runs.tiles import Setting
from fault_runs.witness import Witness, against_plan
from histill.local.site import Site

JOB = "jobs/pretrain_student.py"
EXPERIMENT = "faults"
_WAIT_S = 300.0


@dataclass
class Run:
    """A run of `epochs`, as far as a user sees it. `start` may be called again for the same name."""

    site: Site
    setting: Setting
    name: str
    epochs: int
    changes: dict[str, str] = field(default_factory=dict)
    injected: int = 0
    notes: list[str] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)  # from a fault to the first step that is new
    _kept: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Run":
        self.witness = self._kept.enter_context(Witness(self.site.s3, f"{self.site.s3.bucket}/runs/{self.name}"))
        self.client = MlflowClient(self.site.tracking.uri, self.site.tracking.uri)
        self.log = self.site.folder / f"{self.name}.log"
        self.said: list[str] = []
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._kept.close()

    def start(self) -> None:
        """Submit the job."""
        keys = {
            "name": self.name,
            "runs": f"s3://{self.site.s3.bucket}/runs",
            "data.tiles": self.setting.tiles,
            "data.batch_size": "8",
            "student.encoder": "csat_tiny",
            "student.decoder_channels": "[16, 16, 8, 8, 8]",
            "teacher.classical": "true",
            "optimiser.epochs": str(self.epochs),
            "tracking.experiment": EXPERIMENT,
            "checkpoint_every": "4",
            "max_failures": "50",
            "workers.count": "2",
        } | self.changes
        self.process = self.site.submit(JOB, *(f"{key}={value}" for key, value in keys.items()), log=self.log)

    def steps(self) -> int:
        """Steps that checkpoints prove."""
        return max((sight.steps(self.setting.per_epoch) for sight in list(self.witness.sights.values())), default=0)

    @property
    def ended(self) -> bool:
        """Whether the job has."""
        return self.process.poll() is not None

    def wait_for_steps(self, steps: int, timeout_s: float = _WAIT_S) -> bool:
        """Wait until a checkpoint is seen after `steps` or more; False when the run ends, or stands still, before."""
        arrived = self.wait_until(lambda: self.steps() >= steps, timeout_s)
        if not arrived and not self.ended:
            self.notes.append(f"stood still after step {self.steps()}")
        return arrived

    def wait_until(self, true: Callable[[], bool], timeout_s: float = _WAIT_S) -> bool:
        """Wait until `true()`; False when the run ends or the time is up before."""
        deadline = time.monotonic() + timeout_s
        while not true():
            if self.ended or time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def resumed_after(self, fault_at: float) -> bool:
        """Wait for the first checkpoint of steps that were not done when the fault came; note how long it took."""
        done = self.steps()
        if not self.wait_for_steps(done + 1):
            return False
        new = [sight.seen_at for sight in self.witness.sights.values() if sight.steps(self.setting.per_epoch) > done]
        self.resumed_s.append(min(new) - fault_at)
        return True

    def finish(self, timeout_s: float = 600.0) -> str:
        """Wait for the job's end; what it has said."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.notes.append(f"not ended within {timeout_s:.0f} s")
            self.process.kill()
            self.process.wait()
        text = self.log.read_text(errors="replace")
        self.said.append(text)
        return text

    def last_words(self) -> str:
        """The job's own lines, without Ray's."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if not re.match(r"\S+ \S+\s+(INFO|SUCC|WARNING|ERR)\b", line))[-1500:]

    def verdict(self, reference: dict[str, float] | None) -> "Verdict":
        """What is true of the finished run."""
        text = self.finish()
        self._kept.close()
        faults = list(self.notes)
        found = re.findall(r"^\{.*\}$", text, re.MULTILINE)
        if self.process.returncode or not found:
            faults.append(f"the job ended with {self.process.returncode}: {self.last_words()[-400:]}")
        metrics: dict[str, Any] = json.loads(found[-1])["metrics"] if found else {}
        batches = [[list(batch) for batch in epoch] for epoch in self.setting.batches[: self.epochs]]
        lost, repeated, ledgers = against_plan(self.witness.sights, batches)
        if lost or repeated:
            faults.append(f"{lost} tiles lost, {repeated} repeated")
        faults += self._history()
        left = self.witness.left()
        if metrics and (len(left) > 2 or left[-1:] != [f"step-{int(metrics['step']):08d}"]):
            faults.append(f"checkpoints left: {left}")
        difference = float("nan")
        if metrics and reference:
            difference = abs(metrics["loss"] - reference["loss"]) / reference["loss"]
            if not difference < 0.01:
                faults.append(f"loss {metrics['loss']:.4f} instead of {reference['loss']:.4f}")
        return Verdict(self.name, self.injected, lost, repeated, ledgers, difference, self.resumed_s, faults, metrics)

    def _history(self) -> list[str]:
        """What is wrong with the run's record."""
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
        if not steps or (np.diff(steps) <= 0).any():
            faults.append(f"train/loss has the steps {steps}")
        return faults


@dataclass(frozen=True)
class Verdict:
    """The end of a run: `faults` is empty when all is as it must be."""

    name: str
    injected: int
    lost: int
    repeated: int
    ledgers: int
    loss_difference: float
    resumed_s: list[float]
    faults: list[str]
    metrics: dict[str, Any]

    @property
    def survived(self) -> int:
        """The faults that the run has borne."""
        return 0 if self.faults else self.injected
