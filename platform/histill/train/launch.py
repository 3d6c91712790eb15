"""Train a checked run to its end, on Ray Train or in this process, as one tracked run with one folder."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from histill.cluster.metrics import Job, name_job
from histill.cluster.signals import keep_on_interrupt
from histill.config.base import Strict
from histill.config.common import Storage, Tracking, WorkerGroup
from histill.storage.uris import join
from histill.train.claim import hold_claim
from histill.train.run_folder import check_same_inputs, open_record, run_uri, save_record, write_result
from histill.train.tracker import DataUse, close_on_error
from histill.train.validation_warnings import doubt_validation

if TYPE_CHECKING:
    from histill.train.session import OnReport
    from histill.train.spec import RunSpec


Fit = Callable[..., tuple[str, dict[str, float]]]
"""Trains a spec; returns the final model folder and the metrics."""

UNSENT = "_unsent"  # folder next to the run folders, whose names cannot start with an underscore


class OpenRun(Protocol):
    """Starts or resumes a tracked run; implemented by the registry's `open_run`."""

    def __call__(
        self,
        tracking: Tracking,
        *,
        name: str,
        kind: str,
        config: Strict,
        run_id: str | None,
        parent: str | None = None,
        note: str | None = None,
        data: Sequence[DataUse] = (),
        unsent: str | None = None,
        storage: Storage = ...,
    ) -> Any:
        """Return a tracker with a `run_id`, or None when nothing is tracked.

        `note` describes a new run (Markdown), and `data` are the tile sets that it reads. Metrics that an unreachable
        server missed are spooled to the folder `unsent` of `storage`.
        """
        ...


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    run: str  # URI of the run's folder
    model: str  # URI of the final model folder
    metrics: dict[str, float]
    tracking_run: str | None

    @property
    def uri(self) -> str:
        """Where it is stored; keys of other jobs take the run itself in its place."""
        return self.run


def train_run(
    spec: "RunSpec",
    open_run: OpenRun,
    *,
    parent: str | None = None,
    callbacks: Sequence[Any] = (),
    on_report: "OnReport | None" = None,
    show: bool = True,
    claims: bool = True,
    figures: Mapping[str, float] = MappingProxyType({}),
    title: str | None = None,
) -> Trained:
    """Train on the connected cluster, or with `workers.count` 0 in this process; a run of the same name resumes from
    its newest checkpoint.

    `callbacks` are Ray Train's; in this process `on_report` is called instead, with each checkpoint's metrics and path
    once it is kept. `figures` are values known before training, logged with the run's metrics. Without
    `claims` the caller ensures that no other job works on the run. `title` names the tracked run; None: the run's name.

    Raises InputError when the run is finished, has another configuration, or is claimed by another job; HistillError
    and Ray's TrainingFailedError when the run cannot continue; Interrupted when a signal ends it.
    """
    config = spec.config
    held = hold_claim(run_uri(config), config.storage) if claims else nullcontext()
    named = name_job(Job(config.kind, config.name))
    with named, held, keep_on_interrupt("the newest checkpoint stays"):
        fit = _choose_fit(config.workers, callbacks, on_report)
        return _train_run(spec, open_run, parent, fit, show, figures, title or config.name)


def _train_run(
    spec: "RunSpec",
    open_run: OpenRun,
    parent: str | None,
    fit: Fit,
    show: bool,
    figures: Mapping[str, float],
    title: str,
) -> Trained:
    config = spec.config
    record = open_record(config)
    check_same_inputs(config, record, spec.inputs)  # a previous job may have written the record meanwhile
    tracker = open_run(
        config.tracking,
        name=title,
        kind=config.kind,
        config=config,
        run_id=record.tracking_run,
        parent=parent,
        note=_describe(spec),
        data=[
            DataUse(config.data.tiles, spec.inputs[key], "training") for key in ("data.tiles",) if key in spec.inputs
        ],
        unsent=join(config.runs, UNSENT),
        storage=config.storage,
    )
    # a trial is closed by its sweep, which knows whether it failed or was stopped early
    with close_on_error(tracker if parent is None else None, run_uri(config)):
        run_id = tracker.run_id if tracker else None
        save_record(config, record.model_copy(update={"tracking_run": run_id, "inputs": spec.inputs}))
        if tracker and figures:
            tracker.metrics(figures, 0)
            tracker.close()  # send now: a trial that is stopped early has no time to
        model, metrics = fit(spec, tracker, show=show)
        if tracker:
            tracker.finish("FINISHED")
        write_result(config, model, metrics)  # last: from now on the name is refused
    if show and (doubt := doubt_validation(config.name, metrics)):
        print(f"warning: {doubt}", file=sys.stderr, flush=True)
    return Trained(run_uri(config), model, metrics, run_id)


def _describe(spec: "RunSpec") -> str:
    """The tracked run's description, in Markdown."""
    config, card = spec.config, spec.card
    lines = [
        f"`{config.kind}` of `{card.encoder}`, which sees tiles of `{config.data.tiles}` at {card.size_px} px.",
        "",
        f"- folder of the run: `{run_uri(config)}`",
        f"- teacher: {card.teacher_name}",
    ]
    return "\n".join([*lines, f"- classes: {', '.join(card.classes)}"] if card.classes else lines)


def _choose_fit(workers: WorkerGroup, callbacks: Sequence[Any], on_report: "OnReport | None") -> Fit:
    """How to train a spec to its final model folder and metrics. Raises InputError for a GPU that is not there."""
    if workers.in_process:
        from histill.train import in_process

        assert not callbacks  # nobody calls them without Ray
        return partial(in_process.fit, device=in_process.choose_device(workers), on_report=on_report)
    from histill.train.ray import fit as on_ray

    assert on_report is None  # Ray Train's callbacks run in its controller
    return partial(on_ray.fit, callbacks=callbacks)
