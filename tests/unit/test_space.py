"""Search spaces: what cannot be drawn is refused before the first trial, in one sentence."""

from typing import Any

import pytest

from histill.config.load import validate
from histill.config.runs import SearchConfig
from histill.errors import InputError
from histill.search.space import check_space, trial_config

pytestmark = pytest.mark.unit


def config(space: dict[str, Any]) -> SearchConfig:
    data = {
        "name": "sweep",
        "runs": "runs",
        "data": {"tiles": "tiles", "batch_size": 16},
        "teacher": {"classical": True},
        "loss": {"temperature": 2.0},
        "trials": 3,
        "space": space,
    }
    return validate(SearchConfig, data, "test")


def test_a_sound_space_passes() -> None:
    check_space(
        config(
            {
                "loss.temperature": {"loguniform": [1, 8]},
                "loss.dice": {"uniform": [0.0, 1.0]},
                "student.size_px": {"choice": [32, 64, None]},
                "student.decoder_channels": {"choice": [[16, 16, 8, 8, 8], [32, 16, 8, 8, 8]]},
                "student.mpp": {"choice": [1.0, 2.0]},
                "data.batch_size": {"choice": [8, 16]},
                "data.balance": {"choice": [None, "case"]},
                "data.augment.stain": {"uniform": [0.0, 0.3]},
                "data.augment.crop_px": {"choice": [None, 64]},
                "optimiser.lr": {"loguniform": [1e-4, 1e-2]},
            }
        )
    )


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        ({"loss.temprature": {"uniform": [1, 2]}}, ["space.loss.temprature", "did you mean 'loss.temperature'?"]),
        ({"loss.temperature": {"uniform": [0, 2]}}, ["space.loss.temperature", "is 0", "greater than 0"]),
        ({"student.size_px": {"choice": [32, 48]}}, ["space.student.size_px", "48", "multiple of 32"]),
        ({"student.size_px": {"uniform": [32, 64]}}, ["space.student.size_px", "32.0", "integer"]),
        ({"data.batch_size": {"choice": [16, 15]}}, ["space.data.batch_size", "15", "does not divide"]),
        ({"loss.soft": {"uniform": [0, 1]}}, ["space.loss.soft", "all 0"]),
        ({"data.flips": {"choice": [True]}}, ["space.data.flips", "not a key"]),
        ({"data.augment.stain": {"uniform": [0, 1]}}, ["space.data.augment.stain", "1", "less than 1"]),
        ({"data.augment.stian": {"uniform": [0, 1]}}, ["did you mean 'data.augment.stain'?"]),
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
        "optimiser",
        "optimiser.epochs",
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
        ({"choice": []}, "at least 1 item"),
        ({}, "exactly one"),
        ({"uniform": [0, 1], "choice": [1]}, "exactly one"),
        ({"unifrom": [0, 1]}, "is not a key"),
    ],
)
def test_an_unsound_draw_is_named(draw: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        config({"loss.temperature": draw})
    assert "space.loss.temperature" in str(caught.value)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(InputError, match="'space'"):
        config({})


def test_a_trial_is_the_sweep_with_its_values() -> None:
    sweep = config({"loss.temperature": {"uniform": [1, 4]}})
    trial = trial_config(sweep, {"loss.temperature": 3.5, "student.size_px": 64}, name="t1", runs="runs/sweep/trials")
    assert (trial.name, trial.runs) == ("t1", "runs/sweep/trials")
    assert trial.loss.temperature == 3.5
    assert trial.student.size_px == 64
    assert trial.data == sweep.data
    assert trial.optimiser == sweep.optimiser
