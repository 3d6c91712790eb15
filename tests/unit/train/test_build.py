"""The order of a run's passes, which one execution reads ahead."""

from typing import Any

import pytest

from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.train.build import list_passes

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("every_steps", "expected"),
    [(1, "t0 v t1 v t2 v"), (8, "t0 t1 v t2 v"), (100, "t0 t1 t2 v")],
)
def test_validations_come_where_the_loop_makes_them(every_steps: int, expected: str) -> None:
    data: dict[str, Any] = {
        "name": "a",
        "runs": "r",
        "data": {"tiles": "t", "seed": 7, "augment": {"crop_px": 32}},
        "teacher": {"classical": True},
        "optimizer": {"epochs": 3},
        "validation": {"every_steps": every_steps},
    }
    config = validate(PretrainConfig, data, "test")
    passes = list_passes(config, steps=4)
    assert " ".join(f"t{of.epoch}" if name == "training" else "v" for name, of in passes) == expected
    shuffled = {of.series for name, of in passes if name == "training"}
    assert {(series.shuffled, series.seed, series.augment) for series in shuffled} == {(True, 7, config.data.augment)}
