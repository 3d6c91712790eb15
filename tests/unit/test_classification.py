"""Figures of a classifier against references written from their definitions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from histill.metrics.classification import Classification, area_under_roc

pytestmark = pytest.mark.unit


def drawn(seed: int, tiles: int, classes: int, present: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(present, (tiles,), generator=random)
    logits = torch.randn(tiles, classes, generator=random, dtype=torch.float64)
    logits[torch.arange(tiles), labels] += 1.0
    return logits, labels


@given(st.integers(0, 99), st.integers(20, 80), st.integers(2, 5))
def test_the_figures_are_those_of_their_definitions(seed: int, tiles: int, classes: int) -> None:
    logits, labels = drawn(seed, tiles, classes, classes)
    found = Classification.of(logits, labels)
    decided = logits.argmax(1)
    present = labels.unique().tolist()
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, decided))
    assert found.macro_f1 == pytest.approx(f1_score(labels, decided, average="macro", labels=present))
    assert found.accuracy == pytest.approx(float((labels == decided).double().mean()))
    scores = logits.softmax(1)
    areas = [roc_auc_score(labels == k, scores[:, k]) for k in present if 0 < int((labels == k).sum()) < tiles]
    assert found.auroc == pytest.approx(np.mean(areas))
    assert sum(map(sum, found.confusion)) == tiles


def test_the_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    logits, labels = drawn(3, 400, 3, 3)
    confidence, decided = logits.softmax(1).max(1)
    right = (decided == labels).double()
    expected = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, 16)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = (right[inside].mean() - confidence[inside].mean()).abs()
            expected += float(inside.double().mean() * gap)
    assert Classification.of(logits, labels).calibration_error == pytest.approx(expected, abs=1e-5)


def test_a_class_without_a_tile_has_no_part_in_the_means() -> None:
    logits, labels = drawn(5, 60, 4, 2)
    found = Classification.of(logits, labels)
    assert found.recall[:2] == pytest.approx(
        [float((logits.argmax(1)[labels == k] == k).double().mean()) for k in (0, 1)]
    )
    assert all(value != value for value in found.recall[2:])
    assert found.balanced_accuracy == pytest.approx(sum(found.recall[:2]) / 2)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_the_area_counts_ordered_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([float(score) for score, _ in pairs])
    positive = torch.tensor([flag for _, flag in pairs])
    area = area_under_roc(scores, positive)
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[positive].tolist()
        for low in scores[~positive].tolist()
    ]
    assert area == pytest.approx(sum(wins) / len(wins)) if wins else area != area
