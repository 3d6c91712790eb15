"""Metric accumulators: results do not depend on how a split is divided into batches and workers."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from histill.metrics.weighted import classification_metrics, overlap_metrics
from histill.models.resample import resize_logits
from histill.outputs import OutputSpec
from histill.stream.tile_batch import TileBatch
from histill.tasks.metrics import ClassificationMetric, SegmentationMetric
from histill.tasks.task import Metric

pytestmark = pytest.mark.unit

CLASSES, TILES, SIDE = 3, 11, 4
ROWS = np.array([2, 3, 5, 8, 9, 13, 14, 20, 21, 22, 40])  # manifest rows of the split's tiles

random = torch.Generator().manual_seed(0)
LABELS = torch.randint(CLASSES, (TILES,), generator=random)
CLASS_LOGITS = torch.randn(TILES, CLASSES, generator=random)
MASKS = torch.randint(CLASSES, (TILES, SIDE, SIDE), generator=random, dtype=torch.uint8)
PIXEL_LOGITS = torch.randn(TILES, CLASSES, SIDE, SIDE, generator=random)


def batch_of(chosen: list[int], padding: int, valid: list[bool] | None = None) -> TileBatch:
    """A batch of the tiles `chosen` and of `padding` rows with arbitrary values."""
    index = torch.tensor([int(ROWS[tile]) for tile in chosen] + [-1] * padding)
    count = len(index)
    values: dict[str, Any] = {
        "student": torch.zeros(count, 3, SIDE, SIDE, dtype=torch.uint8),
        "teacher": None,
        "valid": torch.tensor((valid or [True] * len(chosen)) + [False] * padding),
        "index": index,
        "label": torch.cat([LABELS[chosen], torch.full((padding,), -1)]),
        "mask": torch.cat([MASKS[chosen], torch.zeros(padding, SIDE, SIDE, dtype=torch.uint8)]),
        "response": None,
        "planned": len(chosen),
    }
    return TileBatch(**values)


def padded(outputs: Tensor, chosen: list[int], padding: int) -> Tensor:
    return torch.cat([outputs[chosen], torch.full((padding, *outputs.shape[1:]), 7.0)])


def class_metric() -> ClassificationMetric:
    return ClassificationMetric(OutputSpec("classification", tuple("abc")), ROWS)


def overlap_metric() -> SegmentationMetric:
    def reference(batch: TileBatch) -> Tensor:
        assert batch.mask is not None
        return batch.mask.long()

    return SegmentationMetric(OutputSpec("segmentation", tuple("abc")), reference)


KINDS = [(class_metric, CLASS_LOGITS), (overlap_metric, PIXEL_LOGITS)]


def judged(metrics: list[Metric], outputs: Tensor, parts: list[tuple[int, list[int], int]]) -> dict[str, float]:
    """The metrics from the summed states; each part is a worker with its tiles and padding."""
    for worker, chosen, padding in parts:
        metrics[worker].update(padded(outputs, chosen, padding), batch_of(chosen, padding))
    metrics[0].state = torch.stack([metric.state for metric in metrics]).sum(0)
    return metrics[0].compute()


@given(st.data())
@pytest.mark.parametrize(("make", "outputs"), KINDS, ids=["classes", "pixels"])
def test_the_figures_are_those_of_one_pass(make: Any, outputs: Tensor, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(TILES)))
    cuts = sorted(data.draw(st.sets(st.integers(1, TILES - 1))))
    workers = data.draw(st.integers(1, 3))
    parts = [
        (data.draw(st.integers(0, workers - 1)), list(order[start:end]), data.draw(st.integers(0, 2)))
        for start, end in zip([0, *cuts], [*cuts, TILES], strict=True)
    ]
    found = judged([make() for _ in range(workers)], outputs, parts)
    assert found == judged([make()], outputs, [(0, list(range(TILES)), 0)])


def test_the_figures_of_classes_are_those_of_the_metric() -> None:
    found = judged([class_metric()], CLASS_LOGITS, [(0, list(range(TILES)), 0)])
    expected = classification_metrics(CLASS_LOGITS.double().numpy(), LABELS.numpy(), np.ones((1, TILES)))
    assert found == pytest.approx({name: value[0] for name, value in expected.items()})
    assert found.keys() == {"balanced_accuracy", "macro_f1", "auroc", "calibration_error", "accuracy"}


def test_the_figures_of_pixels_are_those_of_the_metric() -> None:
    found = judged([overlap_metric()], PIXEL_LOGITS, [(0, list(range(TILES)), 0)])
    counts = np.zeros((CLASSES, CLASSES))
    np.add.at(counts, (MASKS.numpy().ravel(), PIXEL_LOGITS.argmax(1).numpy().ravel()), 1)
    expected = overlap_metrics(counts[None], np.ones((1, 1)))
    shares = {
        "foreground": float((PIXEL_LOGITS.argmax(1) > 0).double().mean()),
        "reference_foreground": float((MASKS > 0).double().mean()),
    }
    assert found == pytest.approx({name: value[0] for name, value in expected.items()} | shares)


@pytest.mark.parametrize(("make", "outputs"), KINDS, ids=["classes", "pixels"])
def test_a_tile_that_could_not_be_decoded_does_not_count(make: Any, outputs: Tensor) -> None:
    """Unlike padding it has a manifest row, but the model's output for it is meaningless."""
    all_but_one = [tile for tile in range(TILES) if tile != 4]
    expected = judged([make()], outputs, [(0, all_but_one, 0)])
    metric, spoilt = make(), outputs.clone()
    spoilt[4] = float("nan")
    metric.update(spoilt, batch_of(list(range(TILES)), 0, [tile != 4 for tile in range(TILES)]))
    assert metric.compute() == expected


@pytest.mark.parametrize(("make", "outputs"), KINDS, ids=["classes", "pixels"])
def test_a_batch_of_padding_alone_changes_nothing(make: Any, outputs: Tensor) -> None:
    metric = make()
    metric.update(padded(outputs, [], 3), batch_of([], 3))
    assert not metric.state.any()


@pytest.mark.parametrize("side", [2, 8])
def test_pixels_are_judged_at_the_size_of_the_reference(side: int) -> None:
    """A network with another input size is scored against the mask at its own size."""
    logits = torch.randn(TILES, CLASSES, side, side, generator=torch.Generator().manual_seed(1))
    metric = overlap_metric()
    metric.update(logits, batch_of(list(range(TILES)), 0))
    assert int(metric.state.sum()) == TILES * SIDE * SIDE
    expected = judged([overlap_metric()], resize_logits(logits, SIDE), [(0, list(range(TILES)), 0)])
    assert metric.compute() == expected
