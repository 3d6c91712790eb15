"""The line of each validation: what it compares with, after a resume as well."""

import math

import pytest

from histill.train.epoch_summary import EpochSummary

pytestmark = pytest.mark.unit


def summary() -> EpochSummary:
    return EpochSummary("balanced_accuracy", epochs=4)


def reported(epoch: int, value: float, **others: float) -> dict[str, float]:
    return {"epochs": epoch, "step": 8 * epoch, "loss": 1.25, "val_balanced_accuracy": value} | others


def test_each_validation_is_compared_with_the_best_so_far() -> None:
    of_run = summary()
    assert of_run.latest == ""
    assert of_run.add(reported(1, 0.25)) == "epoch 1 of 4: loss 1.2500, balanced accuracy 0.250"
    assert of_run.add(reported(2, 0.5)) == "epoch 2 of 4: loss 1.2500, balanced accuracy 0.500, the best so far"
    assert of_run.latest == "balanced accuracy 0.500"
    line = of_run.add(reported(3, math.nan))
    assert line == "epoch 3 of 4: loss 1.2500, balanced accuracy -, best so far 0.500 in epoch 2"
    assert of_run.latest == "balanced accuracy - (best 0.500)"
    assert of_run.add({"epochs": 3, "step": 28, "tiles": 9}) is None  # a checkpoint within an epoch
    assert of_run.add(reported(4, 0.5)) == "epoch 4 of 4: loss 1.2500, balanced accuracy 0.500, the best so far"


def test_of_a_run_that_keeps_its_best_model_the_current_one_is_shown() -> None:
    of_run = summary()
    before = {"epochs": 0, "step": 0, "tiles": 0, "val_balanced_accuracy": 0.2, "current_balanced_accuracy": 0.2}
    assert of_run.add(before) == "before the first step: balanced accuracy 0.200"
    line = of_run.add(reported(1, 0.2, current_balanced_accuracy=0.1))
    assert line == "epoch 1 of 4: loss 1.2500, balanced accuracy 0.100, best so far 0.200 before the first step"
    told = "ended after epoch 1; keeping the model from before the first step, the best: balanced accuracy 0.200"
    assert of_run.close(keep_best=True) == told


def test_a_resumed_run_claims_nothing_of_validations_that_it_has_not_seen() -> None:
    last, best, within = summary(), summary(), summary()
    last.resume(reported(2, 0.3))
    assert last.add(reported(3, 0.4)) == "epoch 3 of 4: loss 1.2500, balanced accuracy 0.400, the best since epoch 2"
    best.resume(reported(2, 0.6, current_balanced_accuracy=0.3), (1, 0.6))
    assert best.latest == "balanced accuracy 0.300 (best 0.600)"
    assert best.add(reported(3, 0.6, current_balanced_accuracy=0.4)) == (
        "epoch 3 of 4: loss 1.2500, balanced accuracy 0.400, best so far 0.600 in epoch 1"
    )
    within.resume({"epochs": 2, "step": 20, "tiles": 90})
    assert (within.latest, within.close(keep_best=False)) == ("", None)
    assert within.add(reported(3, 0.4)) == "epoch 3 of 4: loss 1.2500, balanced accuracy 0.400"


def test_the_end_says_what_keeping_the_best_would_have_kept() -> None:
    of_run = summary()
    assert of_run.close(keep_best=False) is None
    for epoch, value in enumerate((0.25, 0.5, 0.375), start=1):
        of_run.add(reported(epoch, value))
    assert of_run.close(keep_best=False) == (
        "ended with balanced accuracy 0.375; the model of epoch 2 had 0.500, and "
        "validation.keep=best would have kept it"
    )
    of_run.add(reported(4, 0.75))
    assert of_run.close(keep_best=False) is None
