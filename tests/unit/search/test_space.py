"""Search spaces: invalid ones are refused before the first trial, in one sentence."""

from typing import Any

import pytest

from histill.config.load import load_config, validate
from histill.config.search_students import SearchRange
from histill.errors import InputError
from histill.search.configs import PretrainSearch
from histill.search.space import build_trial_config, check_space
from histill.search.sweep import make_searcher

pytestmark = pytest.mark.unit
TEMPERATURE = "loss.soft_cross_entropy.temperature"


def config(space: dict[str, Any]) -> PretrainSearch:
    data = {
        "name": "sweep",
        "runs": "runs",
        "data": {"tiles": "tiles", "batch_size": 16},
        "teacher": {"classical": True},
        "loss": {"soft_cross_entropy": {"temperature": 2.0}},
        "trials": 3,
        "space": space,
    }
    return validate(PretrainSearch, data, "test")


def test_a_sound_space_passes() -> None:
    check_space(
        config(
            {
                TEMPERATURE: {"loguniform": [1, 8]},
                "loss.soft_dice.weight": {"uniform": [0.0, 1.0]},
                "student.size_px": {"choice": [32, 64, None]},
                "student.decoder_channels": {"choice": [[16, 16, 8, 8, 8], [32, 16, 8, 8, 8]]},
                "student.mpp": {"choice": [1.0, 2.0]},
                "data.batch_size": {"choice": [8, 16]},
                "data.balance": {"choice": [None, "case"]},
                "data.augment.stain": {"uniform": [0.0, 0.3]},
                "data.augment.crop_px": {"choice": [None, 64]},
                "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
            }
        )
    )


def test_a_key_may_be_given_by_its_sections_as_on_the_command_line() -> None:
    sections = config(
        {"student": {"size_px": {"choice": [32]}}, "loss": {"soft_dice": {"weight": {"uniform": [0, 1]}}}}
    )
    assert sections == config({"student.size_px": {"choice": [32]}, "loss.soft_dice.weight": {"uniform": [0, 1]}})
    given = ["name=x", "runs=r", "data.tiles=t", "teacher.classical=true", "space.optimizer.lr.loguniform=[1e-4, 1e-2]"]
    assert load_config(PretrainSearch, None, given).space == {"optimizer.lr": SearchRange(loguniform=(1e-4, 1e-2))}


def test_a_range_in_the_place_of_a_value_belongs_in_the_space() -> None:
    given = ["name=x", "runs=r", "data.tiles=t", "teacher.classical=true", "student.size_px.choice=[32, 64]"]
    with pytest.raises(
        InputError, match=r"'student.size_px' is a range .* write the range as space\.student\.size_px\."
    ):
        load_config(PretrainSearch, None, given)


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        (
            {"loss.temprature": {"uniform": [1, 2]}},
            ["space.loss.temprature", f"did you mean 'space.{TEMPERATURE}'?"],
        ),
        (
            {TEMPERATURE: {"uniform": [0, 2]}},
            [f"space.{TEMPERATURE}", "is 0", "greater than 0"],
        ),
        ({"student.size_px": {"choice": [32, 48]}}, ["space.student.size_px", "48", "multiple of 32"]),
        ({"student.size_px": {"uniform": [32, 64]}}, ["space.student.size_px", "32.0", "integer"]),
        ({"data.batch_size": {"choice": [16, 1]}}, ["space.data.batch_size", "1", "workers.count 2"]),
        ({"loss.soft_cross_entropy.weight": {"uniform": [0, 1]}}, ["space.loss.soft_cross_entropy.weight", "no term"]),
        ({"data.flips": {"choice": [True]}}, ["space.data.flips", "did you mean 'space.data.augment.flips'?"]),
        ({"data.augment.stain": {"uniform": [0, 1]}}, ["space.data.augment.stain", "1", "less than 1"]),
        ({"data.augment.stian": {"uniform": [0, 1]}}, ["did you mean 'space.data.augment.stain'?"]),
        ({"size_px": {"choice": [32]}}, ["space.size_px: pretrain_student has no", "mean 'space.student.size_px'?"]),
        ({"data.balance": {"choice": ["organ"]}}, ["space.data.balance", "organ", "label"]),
    ],
)
def test_a_wrong_key_or_value_is_named(space: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        check_space(config(space))
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    "key",
    [
        "name",
        "runs",
        "data",
        "data.tiles",
        "data.val",
        "teacher.model",
        "responses",
        "storage.endpoint",
        "tracking.uri",
        "workers.count",
        "optimizer",
        "optimizer.epochs",
        "checkpoint_every",
    ],
)
def test_what_the_trials_share_cannot_be_drawn(key: str) -> None:
    with pytest.raises(InputError, match=f"space.{key}: a sweep cannot draw '{key}'"):
        check_space(config({key: {"choice": [1, 2]}}))


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        ({"uniform": [2, 1]}, "empty"),
        ({"uniform": [1, 1]}, "empty"),
        ({"loguniform": [0, 1]}, "above 0"),
        ({"choice": []}, "a list of 1 or more"),
        ({}, "exactly one"),
        ({"uniform": [0, 1], "choice": [1]}, "exactly one"),
        ({"unifrom": [0, 1]}, f"did you mean 'space.{TEMPERATURE}.uniform'"),
        ({"integer": [3, 3]}, "empty"),
        ({"integer": [1.5, 3]}, "integer"),
    ],
)
def test_an_unsound_draw_is_named(draw: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        config({TEMPERATURE: draw})
    assert f"space.{TEMPERATURE}" in str(caught.value)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(InputError, match="'space'"):
        config({})


def test_a_trial_is_the_sweep_with_its_values() -> None:
    sweep = config({TEMPERATURE: {"uniform": [1, 4]}})
    trial = build_trial_config(sweep, {TEMPERATURE: 3.5, "student.size_px": 64}, name="t1", runs="runs/sweep/trials")
    assert (trial.name, trial.runs) == ("t1", "runs/sweep/trials")
    assert trial.loss.soft_cross_entropy.temperature == 3.5
    assert trial.student.size_px == 64
    # The next trials take the CPUs that are free for decoding when this one starts.
    assert (sweep.data.decode, trial.data) == ("auto", sweep.data.model_copy(update={"decode": "worker"}))
    assert trial.optimizer == sweep.optimizer


CONDITIONAL: dict[str, Any] = {
    "student.encoder": {"choice": ["csat_tiny", "resnet18"]},
    "student.size_px": {"choice": [32, 64], "conditions": {"student.encoder": ["csat_tiny"]}},
    "student.decoder_channels": {"choice": [[16, 16, 8, 8, 8], [8, 8, 8, 8, 8]]},
    "optimizer.lr": {"loguniform": [1e-4, 1e-2], "conditions": {"student.size_px": [64]}},
    "data.batch_size": {"integer": [8, 9]},
}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_key_is_drawn_when_its_condition_holds(sampler: str) -> None:
    sweep = config(CONDITIONAL).model_copy(update={"sampler": sampler, "seed": 3})
    asked = make_searcher(sweep, "val_dice")
    seen = [asked.suggest(f"trial-{number}") for number in range(40)]
    for values in seen:
        assert ("student.size_px" in values) == (values["student.encoder"] == "csat_tiny")
        assert ("optimizer.lr" in values) == (values.get("student.size_px") == 64)
        assert values["student.decoder_channels"] in ((16, 16, 8, 8, 8), (8, 8, 8, 8, 8))
        assert values["data.batch_size"] in (8, 9)
        assert 1e-4 <= values.get("optimizer.lr", 1e-3) <= 1e-2
    assert {frozenset(values) for values in seen} == {
        frozenset(CONDITIONAL),
        frozenset(CONDITIONAL) - {"optimizer.lr"},
        frozenset(CONDITIONAL) - {"optimizer.lr", "student.size_px"},
    }
    again = make_searcher(sweep, "val_dice")
    assert [again.suggest(f"other-{number}") for number in range(40)] == seen


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        ({"uniform": [1, 2], "conditions": {"student.size_px": [64]}}, "no key of the space before it"),
        (
            {"uniform": [1, 2], "conditions": {"loss.soft_dice.weight": [0.5]}},
            "loss.soft_dice.weight is drawn as no choice",
        ),
        ({"uniform": [1, 2], "conditions": {"student.encoder": ["csat"]}}, "one of ['csat_tiny', 'resnet18']"),
        ({"uniform": [1, 2], "conditions": {"student.encoder": []}}, "name some of a key's choices"),
    ],
)
def test_a_condition_that_never_holds_is_refused(draw: dict[str, Any], named: str) -> None:
    space = {"student.encoder": CONDITIONAL["student.encoder"], "loss.soft_dice.weight": {"uniform": [0, 1]}}
    with pytest.raises(InputError) as caught:
        config(space | {TEMPERATURE: draw})
    assert named in str(caught.value)
    assert f"space.{TEMPERATURE}.conditions" in str(caught.value)


def test_a_conditional_value_is_checked_where_it_is_drawn() -> None:
    space = {
        "student.mpp": {"choice": [None, 2.0]},
        "student.size_px": {"choice": [32, 48], "conditions": {"student.mpp": [None]}},
    }
    with pytest.raises(InputError, match=r"space\.student\.size_px: .*48.*multiple of 32"):
        check_space(config(space))
    space["student.size_px"]["conditions"] = {"student.mpp": [2.0]}
    with pytest.raises(InputError, match="size_px or mpp, not both"):
        check_space(config(space))


def test_population_based_training_is_refused_with_its_reason() -> None:
    data = config({TEMPERATURE: {"uniform": [1, 2]}}).model_dump() | {"scheduler": "pbt"}
    with pytest.raises(InputError, match=r"scheduler pbt would do nothing: .* set scheduler to asha or none"):
        validate(PretrainSearch, data, "test")
