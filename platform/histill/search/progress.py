"""Show a sweep's progress: trained epochs, trials by state, the best so far and the front."""

import contextlib
import math
import signal
import sys
from typing import Any

from histill.cluster.progress import Progress
from histill.cluster.signals import is_interrupted, reinstall_handlers
from histill.config.search_students import SearchConfig
from histill.errors import InputError
from histill.search.pareto import TradeOff, pareto_front
from histill.search.results import metric_label
from histill.search.trial import run_of
from histill.train.claim import is_lost
from histill.train.launch import OpenRun
from histill.train.run_folder import open_record, read_result, run_uri

_STATES = {"RUNNING": "running", "PENDING": "waiting", "TERMINATED": "done", "ERROR": "failed"}


def sweep_progress(config: SearchConfig, metric: str, open_run: OpenRun) -> Any:
    """A Tune callback that shows a progress line, on a terminal with the running trials below, and one line for each
    trial that ends.

    It also closes the tracked runs of stopped and failed trials, through `open_run`, since their own processes do not
    know which of the two they are.
    """
    from ray import tune

    class SweepProgress(tune.Callback):
        """Reads the trials' last results at each of Tune's events."""

        def setup(self, **_: Any) -> None:
            # not in __init__: a resumed sweep unpickles the callback of its first start, with its old clock
            self.progress: Progress | None = None
            self.closed: set[str] = set()
            self.ended: dict[str, str] = {}  # Tune sets a trial's own status after these callbacks
            tunes: Any = signal.getsignal(signal.SIGINT)  # Tune's handler, which saves its state and ends
            reinstall_handlers(tunes)

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self._show(trials)

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self._show(trials)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self.ended[trial.trial_id] = "TERMINATED"
            point, epochs = _point(trial), _epochs(trial)
            if point is None:
                text = f"trial {trial.trial_id} done after {epochs} epochs: its {metric_label(metric)} is not a number"
                print(text, file=sys.stderr, flush=True)
            else:
                how, whole = ("stopped" if epochs < config.optimizer.epochs else "done"), config.optimizer.epochs
                text = f"trial {trial.trial_id} {how} after {epochs} of {whole} epochs: {_figures(point)}"
                print(
                    text + (", on the front" if point in pareto_front(_points(trials)) else ""),
                    file=sys.stderr,
                    flush=True,
                )
            self._show(trials)
            self._close(trial, "KILLED")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            if not is_interrupted():
                self.ended[trial.trial_id] = "ERROR"
                text = f"trial {trial.trial_id} failed after {_epochs(trial)} epochs; the sweep continues without it"
                print(text, file=sys.stderr, flush=True)
                self._show(trials)
            self._close(trial, "KILLED" if is_interrupted() else "FAILED")

        def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
            for trial in trials:  # those cut short by an interruption
                self._close(trial, "KILLED")
            if self.progress is not None:
                self.progress.close()

        def _close(self, trial: Any, status: str) -> None:
            run = run_of(config, trial.config, trial.trial_id)
            if trial.trial_id in self.closed or is_lost(run_uri(config)) or read_result(run) is not None:
                return
            self.closed.add(trial.trial_id)
            record = open_record(run)
            if record.tracking_run is None:
                return
            with contextlib.suppress(InputError):  # an unavailable server must not end a sweep
                tracker = open_run(run.tracking, name=run.name, kind=run.kind, config=run, run_id=record.tracking_run)
                if tracker:
                    tracker.finish(status)

        def _show(self, trials: list[Any]) -> None:
            total = config.trials * config.optimizer.epochs
            status = {trial.trial_id: self.ended.get(trial.trial_id, trial.status) for trial in trials}
            finished = [trial for trial in trials if status[trial.trial_id] in ("TERMINATED", "ERROR")]
            # epochs that early stopping saved count as done
            done = sum(config.optimizer.epochs if trial in finished else _epochs(trial) for trial in trials)
            if self.progress is None:
                self.progress = Progress(config.name, total, "epochs")
                self.progress.start_at(sum(_epochs(trial) for trial in finished))
            states = [_STATES.get(each, each.lower()) for each in status.values()]
            for state in {*_STATES.values(), *states}:
                self.progress.publisher.set("trials", states.count(state), state=state)
            counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
            points = _points(trials)
            best = max(points, key=lambda point: point.quality, default=None)
            said = f"trials: {counts}" if best is None else f"trials: {counts}  best {best.name} {_figures(best)}"
            self.progress.update(
                min(done, total),
                f"{said}  front of {len(pareto_front(points))}",
                below=[self._line(trial) for trial in trials if status[trial.trial_id] == "RUNNING"],
            )

        def _line(self, trial: Any) -> str:
            """What a terminal shows of a running trial."""
            point = _point(trial)
            known = "" if point is None else f": {_figures(point)}"
            return f"  trial {trial.trial_id}: {_epochs(trial)} of {config.optimizer.epochs} epochs{known}"

    def _points(trials: list[Any]) -> list[TradeOff]:
        return [point for point in map(_point, trials) if point is not None]

    def _point(trial: Any) -> TradeOff | None:
        result = trial.last_result or {}
        quality = result.get(metric, math.nan)
        return (
            None
            if math.isnan(quality) or trial.status == "ERROR"
            else TradeOff(trial.trial_id, quality, result[config.cost])
        )

    def _figures(point: TradeOff) -> str:
        return f"{metric_label(metric)} {point.quality:.3f} at {point.cost:.3g} {metric_label(config.cost)}"

    return SweepProgress()


def _epochs(trial: Any) -> int:
    return int((trial.last_result or {}).get("epochs", 0))
