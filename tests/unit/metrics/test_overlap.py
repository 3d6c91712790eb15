"""Counts and overlaps against torchmetrics and a float64 reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from histill.metrics.overlap import count_confusion, dice_and_iou
from histill.metrics.weighted import overlap_metrics

pytestmark = pytest.mark.unit


def drawn(seed: int, classes: int, tiles: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions, and a reference that agrees for half of the pixels."""
    random = torch.Generator().manual_seed(seed)
    reference = torch.randint(classes, (tiles, 6, 6), generator=random)
    noise = torch.randint(classes, (tiles, 6, 6), generator=random)
    return torch.where(torch.rand(tiles, 6, 6, generator=random) < 0.5, reference, noise), reference


def figures(counts: np.ndarray) -> dict[str, float]:
    return {name: float(value[0]) for name, value in overlap_metrics(counts[None], np.ones((1, 1))).items()}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_overlap_agrees_with_torchmetrics(seed: int, classes: int) -> None:
    decided, reference = drawn(seed, classes)
    counts = count_confusion(decided, reference, classes).sum(0).numpy()
    dice, iou = dice_and_iou(counts)
    expected_iou = MulticlassJaccardIndex(classes, average="none")(decided, reference).numpy()
    expected_dice = MulticlassF1Score(classes, average="none")(decided, reference).numpy()
    np.testing.assert_allclose(iou, expected_iou, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dice, expected_dice, rtol=1e-5, atol=1e-6)
    assert figures(counts)["dice"] == pytest.approx(expected_dice[1:].mean(), abs=1e-6)
    assert figures(counts)["miou"] == pytest.approx(expected_iou.mean(), abs=1e-6)


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_overlap_agrees_with_the_definitions(seed: int, classes: int) -> None:
    decided, reference = drawn(seed, classes)
    dice, iou = dice_and_iou(count_confusion(decided, reference, classes).sum(0).numpy())
    a, b = decided.numpy(), reference.numpy()
    for index in range(classes):
        hit = np.float64(np.logical_and(a == index, b == index).sum())
        false_positive, false_negative = (a == index).sum() - hit, (b == index).sum() - hit
        assert dice[index] == pytest.approx(2 * hit / (2 * hit + false_positive + false_negative), abs=1e-12)
        assert iou[index] == pytest.approx(hit / (hit + false_positive + false_negative), abs=1e-12)


@given(st.integers(0, 10**6))
def test_each_tile_has_counts_of_its_own_whatever_the_batch(seed: int) -> None:
    decided, reference = drawn(seed, 3, tiles=7)
    whole = count_confusion(decided, reference, 3)
    parts = [count_confusion(decided[part], reference[part], 3) for part in (slice(0, 3), slice(3, 4), slice(4, 7))]
    assert torch.equal(whole, torch.cat(parts))
    assert (whole.dtype, whole.shape) == (torch.int64, (7, 3, 3))
    assert whole.sum((1, 2)).tolist() == [36] * 7
    assert count_confusion(decided[:0], reference[:0], 3).shape == (0, 3, 3)


def test_rows_are_the_reference_and_columns_the_decisions() -> None:
    decided, reference = torch.tensor([[[1, 1]]]), torch.tensor([[[0, 1]]])
    assert count_confusion(decided, reference, 2).tolist() == [[[0, 1], [0, 1]]]


def test_a_class_that_never_occurs_has_no_value_and_no_part_in_the_means() -> None:
    counts = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    dice, iou = dice_and_iou(counts)
    assert np.isnan(dice[2])
    assert np.isnan(iou[2])
    assert figures(counts) == pytest.approx({"dice": 6 / 9, "miou": (6 / 9 + 3 / 6) / 2})
    assert np.isnan(figures(np.array([[9, 0], [0, 0]]))["dice"])


def test_counts_beyond_single_precision_stay_exact() -> None:
    many = 2**40
    dice, _ = dice_and_iou(np.array([[many, 1], [0, many + 1]]))
    assert dice[1] == (2 * many + 2) / (2 * many + 3)
