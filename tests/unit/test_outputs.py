"""What a model answers: its decisions, probabilities and stored form, held against their definitions."""

from typing import Any

import numpy as np
import pytest
import torch

from histill.artifacts.model_folder import ModelCard
from histill.metrics.weighted import classification_metrics, compute_figures, multi_label_metrics, overlap_metrics
from histill.outputs import OutputSpec
from histill.teachers.cache import CacheHeader

pytestmark = pytest.mark.unit

THREE = ("background", "nucleus", "boundary")
SEGMENTED = OutputSpec("segmentation", THREE)
CLASSIFIED = OutputSpec("classification", ("stroma", "tumour", "fat"))
SEVERAL = OutputSpec("classification", ("stroma", "tumour", "fat"), multi_label=True)
LOGITS = torch.tensor([[0.0, 2.0, 1.0], [-1.0, -3.0, -2.0], [5.0, 4.0, 6.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (SEGMENTED, (True, "segmentation", True, 2, "dice", "softmax")),
        (OutputSpec("segmentation", THREE[:2]), (True, "segmentation", False, 1, "dice", "softmax")),
        (CLASSIFIED, (False, "classification", False, 2, "balanced_accuracy", "softmax")),
        (SEVERAL, (False, "multi_label", False, 3, "balanced_accuracy", "sigmoid")),
        (OutputSpec("classification", THREE), (False, "classification", False, 2, "balanced_accuracy", "softmax")),
    ],
)
def test_what_follows_from_kind_and_classes(outputs: OutputSpec, expected: tuple[Any, ...]) -> None:
    found = (outputs.dense, outputs.form, outputs.boundary, outputs.packed_channels, outputs.main_metric)
    assert (*found, outputs.activation) == expected


def test_a_class_of_tiles_may_be_called_boundary() -> None:
    outputs = OutputSpec("classification", THREE)
    assert outputs.scored == THREE
    assert outputs.decide(LOGITS).tolist() == [1, 0, 2]


def test_one_label_is_the_likeliest_and_several_are_those_above_a_half() -> None:
    assert CLASSIFIED.decide(LOGITS).tolist() == [1, 0, 2]
    assert SEVERAL.decide(LOGITS).tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 1]]
    assert SEVERAL.decide(LOGITS).dtype == CLASSIFIED.decide(LOGITS).dtype == torch.int64


@pytest.mark.parametrize("outputs", [SEGMENTED, CLASSIFIED, SEVERAL], ids=lambda outputs: outputs.form)
def test_probabilities_outlive_packing(outputs: OutputSpec) -> None:
    exact = LOGITS.numpy()
    shares = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    expected = 1 / (1 + np.exp(-exact)) if outputs.multi_label else shares
    np.testing.assert_allclose(outputs.probabilities(LOGITS), expected, rtol=1e-12)
    packed = outputs.pack(LOGITS[:, :, None, None])
    assert packed.shape == (3, outputs.packed_channels, 1, 1)
    np.testing.assert_allclose(outputs.probabilities(outputs.unpack(packed))[:, :, 0, 0], expected, rtol=1e-12)


def test_figures_are_those_of_the_form() -> None:
    random, weights = np.random.default_rng(0), np.ones((1, 6))
    logits, labels = random.normal(size=(6, 3)), np.array([0, 1, 2, 0, 1, 2])
    several, counts = random.integers(0, 2, (6, 3)), random.integers(0, 9, (6, 2, 2))
    for found, expected in (
        (compute_figures(CLASSIFIED, logits, labels, weights), classification_metrics(logits, labels, weights)),
        (compute_figures(SEVERAL, logits, several, weights), multi_label_metrics(logits, several, weights)),
        (compute_figures(SEGMENTED, counts, labels, weights), overlap_metrics(counts, weights)),
    ):
        assert found.keys() == expected.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name])


@pytest.mark.parametrize("outputs", [SEGMENTED, CLASSIFIED, SEVERAL], ids=lambda outputs: outputs.form)
def test_files_tell_what_is_answered(outputs: OutputSpec) -> None:
    card = ModelCard(
        kind=outputs.kind, multi_label=outputs.multi_label, classes=outputs.classes, encoder="csat", tile_px=64,
        decoder_channels=(), mean=(0.5,) * 3, std=(0.5,) * 3, tile_mpp=0.5, size_px=64, tiles_digest="ab",
        train_cases=(), histill="0",
    )  # fmt: skip
    header = CacheHeader(
        teacher="t", classes=outputs.classes, tiles_digest="d", tiles=1, undecodable=0, dense=outputs.dense,
        multi_label=outputs.multi_label,
    )  # fmt: skip
    assert card.outputs == header.outputs == outputs


def test_a_decision_has_the_names_of_its_classes() -> None:
    assert [CLASSIFIED.names(each) for each in CLASSIFIED.decide(LOGITS)] == [("tumour",), ("stroma",), ("fat",)]
    assert [SEVERAL.names(each) for each in SEVERAL.decide(LOGITS)] == [("tumour", "fat"), (), SEVERAL.classes]
    assert SEVERAL.names(np.array([False, True, False])) == ("tumour",)
    assert SEGMENTED.names(np.int64(1)) == ("nucleus",)
