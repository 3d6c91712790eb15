"""Around a sweep: how many trials fit, and what is shown of their outcome."""

import math
from typing import Any

import pytest

from histill.config.load import validate
from histill.config.search import PretrainSearch
from histill.errors import InputError
from histill.search.outcome import Sweep, TrialResult, ranked
from histill.search.pictures import front_picture, study_pictures
from histill.search.room import trials_at_once, trials_that_fit

pytestmark = pytest.mark.unit

SPACE = {
    "loss.temperature": {"loguniform": [1, 8]},
    "student.size_px": {"choice": [32, 64]},
    "optimiser.accumulate": {"integer": [1, 2], "when": {"student.size_px": [64]}},
}


def config(**keys: Any) -> PretrainSearch:
    data = {
        "name": "sweep",
        "runs": "runs",
        "data": {"tiles": "tiles", "batch_size": 48},
        "teacher": {"classical": True},
        "trials": 100,
        "space": SPACE,
    }
    return validate(PretrainSearch, data | keys, "test")


@pytest.mark.parametrize(
    ("count", "cpus", "gpus", "nodes", "fit"),
    [
        (1, 1.0, 0.0, [{"CPU": 8}], 6),  # 7.5 / 1.1
        (2, 0.4, 0.0, [{"CPU": 2}], 1),  # 1.5 / 0.9
        (1, 0.5, 0.0, [{"CPU": 2}], 2),
        (1, 3.0, 0.0, [{"CPU": 4}, {"CPU": 4}], 2),
        (1, 3.0, 0.0, [{"CPU": 2}] * 8 + [{"CPU": 4}], 1),  # most nodes are too small
        (1, 1.0, 0.25, [{"CPU": 16, "GPU": 1}], 4),
        (1, 1.0, 0.4, [{"CPU": 16, "GPU": 2}], 4),  # two on each GPU, not five on both
        (2, 1.0, 0.5, [{"CPU": 16, "GPU": 3}], 3),
        (1, 1.0, 2.0, [{"CPU": 16, "GPU": 3}, {"CPU": 16, "GPU": 1}], 1),
        (1, 1.0, 1.0, [{"CPU": 64}, {"CPU": 4, "GPU": 4}], 4),
    ],
)
def test_as_many_trials_as_fit_the_nodes(count: int, cpus: float, gpus: float, nodes: list[Any], fit: int) -> None:
    assert trials_at_once(config(workers={"count": count, "cpus": cpus, "gpus": gpus}), nodes) == fit


def test_bounds_on_the_trials_at_once() -> None:
    nodes = [{"CPU": 8.0}]
    assert trials_at_once(config(workers={"count": 1}, concurrent=2), nodes) == 2
    assert trials_at_once(config(workers={"count": 1}, trials=3), nodes) == 3


def test_trials_may_be_begun_for_nodes_that_are_still_to_come() -> None:
    """As in a cluster that starts nodes with GPUs when something waits for them."""
    several = config(workers={"count": 1, "gpus": 1.0}, concurrent=4)
    assert trials_that_fit(several, [{"CPU": 8.0}]) == 0
    assert trials_at_once(several, [{"CPU": 8.0}]) == 4


@pytest.mark.parametrize("workers", [{"count": 4, "cpus": 3.0}, {"count": 1, "gpus": 0.5}, {"count": 16}])
def test_a_trial_that_does_not_fit_is_refused(workers: dict[str, float]) -> None:
    with pytest.raises(
        InputError, match=r"one trial takes .* but the cluster has 12 CPUs \(at most 4 on a node\) and 0"
    ):
        trials_at_once(config(workers=workers), [{"CPU": 4}] * 3)


def trial(name: str, quality: float, gmacs: float | None, **values: Any) -> TrialResult:
    costs = {} if gmacs is None else {"gmacs": gmacs}
    return TrialResult(name, values, 5, quality, costs, None if gmacs is None else f"runs/{name}", None)


def sweep_of(*trials: TrialResult) -> Sweep:
    return Sweep("runs/sweep", "val_dice", "gmacs", ranked(trials), None)


def test_the_best_comes_first_and_failures_last() -> None:
    found = sweep_of(
        trial("failed", math.nan, None),
        trial("nothing", math.nan, 1.0),
        trial("low", 0.2, 1.0),
        trial("high", 0.7, 2.0),
    )
    assert [each.trial for each in found.trials] == ["high", "low", "nothing", "failed"]
    assert found.best.trial == "high"
    assert found.front == ("low", "high")


def test_rows_hold_every_key_of_every_trial() -> None:
    found = sweep_of(trial("a", 0.5, 1.0, x=1), trial("b", 0.6, 2.0, x=2, y=3), trial("c", math.nan, None, x=0))
    assert [list(row) for row in found.rows()] == [
        ["trial", "x", "y", "epochs", "val_dice", "gmacs", "front", "error"],
    ] * 3
    assert found.rows()[0] == {
        "trial": "b", "x": 2, "y": 3, "epochs": 5, "val_dice": 0.6, "gmacs": 2.0, "front": True, "error": None,
    }  # fmt: skip
    assert found.rows()[2]["val_dice"] is None


def test_pictures() -> None:
    values = [{"loss.temperature": 1.0 + 0.5 * number, "student.size_px": (32, 64)[number % 2]} for number in range(12)]
    values[1] |= {"optimiser.accumulate": 2}
    trials = [trial(f"t{number}", 0.5 + 0.01 * number, 1.0 + number % 2, **each) for number, each in enumerate(values)]
    found = sweep_of(*trials, trial("failed", math.nan, None, **values[0]))
    pictures = study_pictures(config(), found) | {"front": front_picture(found)}
    assert set(pictures) == {"parallel_coordinates", "importance", "front"}
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


def test_one_trial_has_nothing_to_compare() -> None:
    found = sweep_of(trial("only", 0.5, 1.0, **{"loss.temperature": 2.0, "student.size_px": 32}))
    assert study_pictures(config(), found) == {}
