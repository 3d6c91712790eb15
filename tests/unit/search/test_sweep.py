"""Sweeps: how many trials fit, how they are stopped, and how their results are shown."""

import math
from dataclasses import replace
from typing import Any

import pytest

from histill.config.load import validate
from histill.errors import InputError
from histill.search.capacity import count_fitting_trials, max_concurrent_trials, trial_resources
from histill.search.configs import PretrainSearch
from histill.search.pictures import draw_front, draw_study
from histill.search.reports import RANKED, add_rank
from histill.search.results import Sweep, TrialResult, rank_trials
from histill.search.sweep import PreparedSweep, _scheduler, make_searcher

pytestmark = pytest.mark.unit
TEMPERATURE = "loss.soft_cross_entropy.temperature"

SPACE = {
    TEMPERATURE: {"loguniform": [1, 8]},
    "student.size_px": {"choice": [32, 64]},
    "optimizer.accumulate": {"integer": [1, 2], "conditions": {"student.size_px": [64]}},
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
        (0, 1.5, 0.0, [{"CPU": 8}], 5),  # 7.5 / 1.5: in Tune's own process, nothing besides
        (0, 1.0, 1.0, [{"CPU": 4, "GPU": 4}], 3),  # 3.5 / 1
    ],
)
def test_as_many_trials_as_fit_the_nodes(count: int, cpus: float, gpus: float, nodes: list[Any], fit: int) -> None:
    made = config(workers={"count": count, "cpus": cpus, "gpus": gpus})
    assert max_concurrent_trials(made, nodes) == fit
    assert trial_resources(made) == ({"CPU": cpus, "GPU": gpus} if count == 0 else {"CPU": 0.1})


def test_bounds_on_the_trials_at_once() -> None:
    nodes = [{"CPU": 8.0}]
    assert max_concurrent_trials(config(workers={"count": 1}, concurrent=2), nodes) == 2
    assert max_concurrent_trials(config(workers={"count": 1}, trials=3), nodes) == 3


def test_trials_may_be_begun_for_nodes_that_are_still_to_come() -> None:
    """As in a cluster that starts GPU nodes on demand."""
    several = config(workers={"count": 1, "gpus": 1.0}, concurrent=4)
    assert count_fitting_trials(several, [{"CPU": 8.0}]) == 0
    assert max_concurrent_trials(several, [{"CPU": 8.0}]) == 4


@pytest.mark.parametrize("workers", [{"count": 4, "cpus": 3.0}, {"count": 1, "gpus": 0.5}, {"count": 16}])
def test_a_trial_that_does_not_fit_is_refused(workers: dict[str, float]) -> None:
    with pytest.raises(
        InputError, match=r"one trial takes .* but the cluster has 12 CPUs \(at most 4 on a node\) and 0"
    ):
        max_concurrent_trials(config(workers=workers), [{"CPU": 4}] * 3)


def trial(name: str, quality: float, gmacs: float | None, **values: Any) -> TrialResult:
    costs = {} if gmacs is None else {"gmacs": gmacs}
    return TrialResult(name, values, 5, quality, costs, None if gmacs is None else f"runs/{name}", None)


def sweep_of(*trials: TrialResult) -> Sweep:
    return Sweep("runs/sweep", "val_dice", "gmacs", rank_trials(trials), None)


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


def test_a_failed_trial_is_no_best_and_on_no_front() -> None:
    """Although it left a checkpoint of a good epoch; the table lists it and the trial without a metric."""
    failed = replace(trial("failed", 0.9, 0.5), error="the disk is full")
    found = sweep_of(failed, trial("nothing", math.nan, 0.1), trial("low", 0.2, 1.0))
    assert found.best.trial == "low"
    assert found.front == ("low",)
    assert [(row["trial"], row["front"], row["error"]) for row in found.rows()] == [
        ("low", True, None),
        ("failed", False, "the disk is full"),
        ("nothing", False, "its quality is not a number"),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_what_is_no_number_is_ranked_below_everything(value: float | None) -> None:
    report = add_rank({"val_dice": value, "epochs": 2}, "val_dice")
    assert math.isnan(report["val_dice"])
    assert report[RANKED] < 0
    assert report["epochs"] == 2
    assert add_rank({"val_dice": 0.0}, "val_dice") == {"val_dice": 0.0, RANKED: 0.0}
    assert add_rank({}, "val_dice")[RANKED] < 0


class Asked:
    """A trial as Tune's schedulers see it."""

    def __init__(self, name: str) -> None:
        self.trial_id, self.status, self.runtime_metadata = name, "RUNNING", None


@pytest.mark.parametrize("objective", ["quality", "front"])
@pytest.mark.parametrize("order", [(0.5, 0.6, math.nan), (0.6, 0.5, math.nan)])
def test_a_trial_without_a_figure_is_stopped(objective: str, order: tuple[float, ...]) -> None:
    """Ray's ASHA would never stop it, since no comparison with nan is true."""
    scheduler = _scheduler(
        PreparedSweep(config(objective=objective, optimizer={"epochs": 8}, grace_epochs=2), "val_dice")
    )
    if objective == "quality":
        assert scheduler.set_search_properties(RANKED, "max")
    decisions = {}
    for number, quality in enumerate(order):
        tried: Any = Asked(f"t{number}")
        scheduler.on_trial_add(None, tried)
        report = add_rank({"val_dice": quality, "epochs": 2, "training_iteration": 2, "gmacs": 1.0}, "val_dice")
        decisions[quality] = scheduler.on_trial_result(None, tried, report)
    assert decisions[math.nan] == "STOP"
    assert decisions[0.6] == "CONTINUE"


@pytest.mark.parametrize("objective", ["quality", "front"])
@pytest.mark.parametrize("grace", [1, 2, 8])
def test_a_trial_that_has_come_to_its_last_epoch_is_not_stopped(objective: str, grace: int) -> None:
    """Otherwise it would skip its final steps, and its run would count as stopped."""
    scheduler = _scheduler(
        PreparedSweep(config(objective=objective, optimizer={"epochs": 8}, grace_epochs=grace), "val_dice")
    )
    if objective == "quality" and grace < 8:
        assert scheduler.set_search_properties(RANKED, "max")
    for number, quality in enumerate((0.6, 0.5, 0.4, 0.3)):
        tried: Any = Asked(f"t{number}")
        scheduler.on_trial_add(None, tried)
        report = add_rank({"val_dice": quality, "epochs": 8, "training_iteration": 8, "gmacs": 1.0}, "val_dice")
        rungs = scheduler._brackets[0]._rungs if objective == "quality" and grace < 8 else []
        for recorded in (each for milestone, each in rungs if milestone < 8):  # rungs that it has passed
            recorded[tried.trial_id] = quality
        assert scheduler.on_trial_result(None, tried, report) == "CONTINUE"


@pytest.mark.parametrize("objective", ["quality", "front"])
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_optuna_finishes_a_trial_without_a_figure_and_never_prefers_it(objective: str, sampler: str) -> None:
    asked = make_searcher(config(objective=objective, sampler=sampler), RANKED)
    for number in range(15):  # TPE's model takes over after ten
        name, quality = f"t{number}", math.nan if number % 3 == 0 else 0.1 + 0.01 * number
        assert asked.suggest(name)
        report = add_rank({"val_dice": quality, "epochs": 8, "training_iteration": 8, "gmacs": 1.0}, "val_dice")
        asked.on_trial_result(name, report)
        asked.on_trial_complete(name, report)
    study = asked._ot_study
    assert {each.state.name for each in study.trials} == {"COMPLETE"}
    best = study.best_trials[0] if objective == "front" else study.best_trial
    assert best.values[0] == pytest.approx(0.24)
    asked.on_trial_complete("of a state that was cut short", {"training_iteration": 1})


def test_rows_hold_every_key_of_every_trial() -> None:
    found = sweep_of(trial("a", 0.5, 1.0, x=1), trial("b", 0.6, 2.0, x=2, y=3), trial("c", math.nan, None, x=0))
    assert [list(row) for row in found.rows()] == [
        ["trial", "x", "y", "epochs", "val_dice", "gmacs", "front", "error"],
    ] * 3
    assert found.rows()[0] == {
        "trial": "b", "x": 2, "y": 3, "epochs": 5, "val_dice": 0.6, "gmacs": 2.0, "front": True, "error": None,
    }  # fmt: skip
    assert found.rows()[2]["val_dice"] is None


@pytest.mark.parametrize(("trials", "names"), [(12, {"values", "front"}), (20, {"values", "front", "importance"})])
def test_pictures_and_importance_only_of_enough_trials(trials: int, names: set[str]) -> None:
    values = [{TEMPERATURE: 1.0 + 0.3 * number, "student.size_px": (32, 64)[number % 2]} for number in range(trials)]
    values[1] |= {"optimizer.accumulate": 2}
    done = [trial(f"t{number}", 0.5 + 0.01 * number, 1.0 + number % 2, **each) for number, each in enumerate(values)]
    found = sweep_of(*done, trial("failed", math.nan, None, **values[0]))
    pictures = draw_study(config(), found) | {"front": draw_front(found)}
    assert set(pictures) == names
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())


def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn from now on, laid out."""
    figures: list[Any] = []

    def keep(figure: Any) -> bytes:
        figure.draw_without_rendering()
        figures.append(figure)
        return b""

    monkeypatch.setattr("histill.search.pictures._png", keep)
    return figures


@pytest.mark.parametrize("best", [(0.5, 1.0), (0.9, 3.0), (0.1, 1.0)])
def test_the_fronts_numbers_cross_no_frame(best: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn_figures(monkeypatch)
    draw_front(sweep_of(trial("t_00012", *best), trial("t_00001", 0.4, 2.0), trial("t_00002", 0.2, 1.5)))
    ((axes,),) = [figure.axes for figure in figures]
    frame, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
    numbers = [text.get_window_extent() for text in axes.texts]
    assert numbers
    assert all(frame.containsx(box.x0) and frame.containsx(box.x1) for box in numbers)
    assert all(frame.containsy(box.y0) and frame.containsy(box.y1) for box in numbers)
    assert not any(legend.overlaps(box) for box in numbers)


def test_a_logarithmic_axis_has_plain_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn_figures(monkeypatch)
    values = [{TEMPERATURE: 1.0 + 0.6 * number, "student.size_px": 32} for number in range(8)]
    draw_study(config(), sweep_of(*(trial(f"t{number}", 0.5, 1.0, **each) for number, each in enumerate(values))))
    axes = next(axes for axes in figures[0].axes if axes.get_xlabel() == TEMPERATURE)
    low, high = axes.get_xlim()
    places = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    assert [text.get_text() for place, text in places if low <= place <= high] == ["1", "2", "5"]
    assert {text.get_text() for text in axes.get_xticklabels(minor=True)} <= {""}


def test_one_trial_has_nothing_to_compare() -> None:
    found = sweep_of(trial("only", 0.5, 1.0, **{TEMPERATURE: 2.0, "student.size_px": 32}))
    assert draw_study(config(), found) == {}
