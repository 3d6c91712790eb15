"""A validation without foreground causes a warning."""

import pytest

from histill.train.validation_warnings import doubt_validation

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("dice", "decided", "reference", "said"),
    [
        (0.0, 0.1, 0.0, "validated against mark 0.000% of the pixels"),
        (float("nan"), 0.0, 0.0, "validated against mark 0.000% of the pixels"),
        (0.0, 0.0, 0.12, "first marks 0.000% of the validation's pixels where its reference marks 12.0%"),
        (0.0, 0.1, 0.12, "nothing of what first marks"),
    ],
)
def test_a_validation_without_foreground_is_doubted(dice: float, decided: float, reference: float, said: str) -> None:
    metrics = {"val_dice": dice, "val_foreground": decided, "val_reference_foreground": reference}
    doubt = doubt_validation("first", metrics)
    assert doubt is not None
    assert said in doubt
    assert "\n" not in doubt


@pytest.mark.parametrize(
    "metrics",
    [
        {"val_dice": 0.02, "val_foreground": 0.5, "val_reference_foreground": 0.01},
        {"val_balanced_accuracy": 0.0},
        {},
    ],
)
def test_other_validations_are_not(metrics: dict[str, float]) -> None:
    assert doubt_validation("first", metrics) is None
