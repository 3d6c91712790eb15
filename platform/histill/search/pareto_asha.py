"""Early stopping that preserves the Pareto front: successive halving by quality and cost together."""

import math
from typing import Any

from histill.search.pareto import TradeOff, dominance_count


class Rungs:
    """At each rung (`first`, `first` x `reduction`, ... epochs), one trial in `reduction` continues.

    Asynchronous successive halving (Li et al., MLSys 2020), ranked by non-dominated sorting instead of one metric
    (Schmucker et al., arXiv 2106.12639): a low-quality trial continues if it is cheap enough to be on the front.
    """

    def __init__(self, first: int, last: int, reduction: int) -> None:
        self._reduction = reduction
        self._reached: dict[int, list[TradeOff]] = {}
        rung = first
        while rung < last:
            self._reached[rung] = []
            rung *= reduction

    def goes_on(self, epochs: int, point: TradeOff) -> bool:
        """Whether the trial `point` continues after `epochs`; call it once per epoch."""
        if epochs not in self._reached:
            return True
        reached = self._reached[epochs]
        reached[:] = [each for each in reached if each.name != point.name]  # a resumed trial may report an epoch again
        reached.append(point)
        return dominance_count(point, reached) < math.ceil(len(reached) / self._reduction)


def pareto_scheduler(rungs: Rungs, epochs: int, quality: str, cost: str) -> Any:
    """A Tune scheduler that stops the trials that `rungs` does not continue; after `epochs` a trial ends by itself."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class FrontHalving(FIFOScheduler):
        """Applies the rungs after each epoch."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            point = TradeOff(trial.trial_id, result[quality], result[cost])
            go_on = result["epochs"] >= epochs or rungs.goes_on(result["epochs"], point)
            return str(TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP)

    return FrontHalving()
