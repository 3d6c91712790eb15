"""The sweep's progress: how many epochs are trained, trials by state, and the best so far."""

from typing import Any

from histill.cluster.progress import Progress
from histill.config.search import SearchConfig


def sweep_progress(config: SearchConfig) -> Any:
    """A Tune callback that shows one line."""
    from ray import tune

    class SweepProgress(tune.Callback):
        """Counts epochs and trials from Tune's events."""

        def setup(self, **_: Any) -> None:
            # not in __init__: a sweep that goes on brings back the callback of its first start, clock and all
            self.progress = Progress(config.name, config.trials * config.optimiser.epochs, "epochs")
            self.epochs: dict[str, int] = {}
            self.best = float("nan")

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
        ) -> None:
            self.epochs[trial.trial_id] = result["epochs"]
            if not result["val_dice"] <= self.best:
                self.best = result["val_dice"]
            self._show(trials)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            self.epochs[trial.trial_id] = config.optimiser.epochs  # what ASHA has spared is done, too
            self._show(trials)

        def _show(self, trials: list[Any]) -> None:
            states = [trial.status.lower() for trial in trials]
            counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
            self.progress.update(sum(self.epochs.values()), f"trials: {counts}  best val Dice {self.best:.3f}")

    return SweepProgress()
