"""Counts and overlaps against torchmetrics and a float64 reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from histill.metrics.overlap import Overlap, confusion

pytestmark = pytest.mark.unit


def drawn(seed: int, classes: int, tiles: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decisions, a reference that half agrees, and which tiles count."""
    random = torch.Generator().manual_seed(seed)
    reference = torch.randint(classes, (tiles, 6, 6), generator=random)
    noise = torch.randint(classes, (tiles, 6, 6), generator=random)
    decided = torch.where(torch.rand(tiles, 6, 6, generator=random) < 0.5, reference, noise)
    valid = torch.rand(tiles, generator=random) < 0.7
    valid[0] = True
    return decided, reference, valid


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_overlap_agrees_with_torchmetrics(seed: int, classes: int) -> None:
    decided, reference, valid = drawn(seed, classes)
    overlap = Overlap.of(confusion(decided, reference, valid, classes))
    iou = MulticlassJaccardIndex(classes, average="none")(decided[valid], reference[valid])
    dice = MulticlassF1Score(classes, average="none")(decided[valid], reference[valid])
    torch.testing.assert_close(torch.tensor(overlap.iou), iou.double(), rtol=1e-5, atol=1e-6, check_dtype=False)
    torch.testing.assert_close(torch.tensor(overlap.dice), dice.double(), rtol=1e-5, atol=1e-6, check_dtype=False)
    assert overlap.mean_dice == pytest.approx(dice[1:].mean().item(), abs=1e-6)
    assert overlap.mean_iou == pytest.approx(iou.mean().item(), abs=1e-6)


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_overlap_agrees_with_the_definitions(seed: int, classes: int) -> None:
    decided, reference, valid = drawn(seed, classes)
    overlap = Overlap.of(confusion(decided, reference, valid, classes))
    a, b = decided[valid].numpy(), reference[valid].numpy()
    for index in range(classes):
        hit = np.float64(np.logical_and(a == index, b == index).sum())
        false_positive, false_negative = (a == index).sum() - hit, (b == index).sum() - hit
        assert overlap.dice[index] == pytest.approx(2 * hit / (2 * hit + false_positive + false_negative), abs=1e-12)
        assert overlap.iou[index] == pytest.approx(hit / (hit + false_positive + false_negative), abs=1e-12)


@given(st.integers(0, 10**6))
def test_counts_add_up_over_any_cut_of_the_set(seed: int) -> None:
    decided, reference, valid = drawn(seed, 3, tiles=7)
    whole = confusion(decided, reference, valid, 3)
    parts = sum(confusion(decided[p], reference[p], valid[p], 3) for p in (slice(0, 3), slice(3, 4), slice(4, 7)))
    assert torch.equal(whole, torch.as_tensor(parts))
    assert whole.dtype == torch.int64
    assert whole.sum() == valid.sum() * 36


def test_rows_are_the_reference_and_columns_the_decisions() -> None:
    decided, reference = torch.tensor([[[1, 1]]]), torch.tensor([[[0, 1]]])
    counts = confusion(decided, reference, torch.tensor([True]), 2)
    assert counts.tolist() == [[0, 1], [0, 1]]


def test_what_an_invalid_tile_holds_does_not_count() -> None:
    decided, reference = torch.zeros(2, 2, 2, dtype=torch.int64), torch.zeros(2, 2, 2, dtype=torch.int64)
    reference[1] = 99
    counts = confusion(decided, reference, torch.tensor([True, False]), 2)
    assert counts.tolist() == [[4, 0], [0, 0]]
    assert confusion(decided, reference, torch.tensor([False, False]), 2).sum() == 0


def test_a_class_that_never_occurs_has_no_value_and_no_part_in_the_means() -> None:
    counts = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    overlap = Overlap.of(counts)
    assert math.isnan(overlap.dice[2])
    assert math.isnan(overlap.iou[2])
    assert overlap.mean_dice == pytest.approx(6 / 9)
    assert overlap.mean_iou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert math.isnan(Overlap.of(torch.tensor([[9, 0], [0, 0]])).mean_dice)


def test_counts_beyond_single_precision_stay_exact() -> None:
    many = 2**40
    overlap = Overlap.of(torch.tensor([[many, 1], [0, many + 1]]))
    assert overlap.dice[1] == (2 * many + 2) / (2 * many + 3)
