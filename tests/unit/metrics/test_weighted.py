"""Weighted metrics against references written from their definitions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from histill.metrics.weighted import area_under_roc, classification_metrics, multi_label_metrics, overlap_metrics

pytestmark = pytest.mark.unit


def drawn(seed: int, tiles: int, classes: int, present: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(present, size=tiles)
    logits = random.normal(size=(tiles, classes))
    logits[np.arange(tiles), labels] += 1.0
    return logits, labels


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits)
    scores: np.ndarray = exponents / exponents.sum(1, keepdims=True)
    return scores


def once(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        name: float(value[0])
        for name, value in classification_metrics(logits, labels, np.ones((1, len(labels)))).items()
    }


@given(st.integers(0, 99), st.integers(20, 80), st.integers(2, 5))
def test_the_figures_of_classes_are_those_of_their_definitions(seed: int, tiles: int, classes: int) -> None:
    logits, labels = drawn(seed, tiles, classes, classes)
    found, decided = once(logits, labels), logits.argmax(1)
    present = np.unique(labels).tolist()
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, decided))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, decided, average="macro", labels=present))
    assert found["accuracy"] == pytest.approx((labels == decided).mean())
    scores = softmax(logits)
    areas = [roc_auc_score(labels == k, scores[:, k]) for k in present if 0 < (labels == k).sum() < tiles]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    error = multiclass_calibration_error(torch.tensor(logits), torch.tensor(labels), num_classes=classes, n_bins=15)
    assert found["calibration_error"] == pytest.approx(float(error), abs=1e-5)


def test_the_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    logits, labels = drawn(3, 400, 3, 3)
    confidence, decided = softmax(logits).max(1), logits.argmax(1)
    right = decided == labels
    expected = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, 16)):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert once(logits, labels)["calibration_error"] == pytest.approx(expected)


def test_a_class_without_a_tile_has_no_part_in_the_means() -> None:
    logits, labels = drawn(5, 60, 4, 2)
    recalls = [(logits.argmax(1)[labels == k] == k).mean() for k in (0, 1)]
    assert once(logits, labels)["balanced_accuracy"] == pytest.approx(np.mean(recalls))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_the_area_counts_ordered_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([float(score) for score, _ in pairs])
    positive = np.array([flag for _, flag in pairs])
    (area,) = area_under_roc(scores, positive, np.ones((1, len(pairs))))
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[positive].tolist()
        for low in scores[~positive].tolist()
    ]
    assert area == pytest.approx(sum(wins) / len(wins)) if wins else np.isnan(area)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_a_weight_is_as_many_copies_of_its_tile(seed: int, copies: list[int]) -> None:
    random = np.random.default_rng(seed)
    logits, labels = drawn(seed, 12, 3, 3)
    several = random.integers(2, size=(12, 3))
    counts = random.integers(9, size=(12, 3, 3))
    repeated = np.repeat(np.arange(12), copies)
    weights = np.array([copies, [1] * 12], np.float64)
    for figures, said, truth in (
        (classification_metrics, logits, labels),
        (multi_label_metrics, logits, several),
        (lambda said, _, weights: overlap_metrics(said, weights), counts, labels),
    ):
        found = figures(said, truth, weights)
        alone = figures(said[repeated], truth[repeated], np.ones((1, len(repeated))))
        for name, values in found.items():
            assert values[0] == pytest.approx(alone[name][0], nan_ok=True), name
            assert values[1] == pytest.approx(figures(said, truth, np.ones((1, 12)))[name][0]), name
