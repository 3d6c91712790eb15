"""Counts of objects, held against the definitions written out with sets of pixels in float64."""

import numpy as np
import pytest
import torch
from torchmetrics.detection import PanopticQuality

from histill.metrics.objects import count_objects, object_metrics, quality_of_classes
from histill.objects.instances import Instances, label_mask

pytestmark = pytest.mark.unit


def draw(seed: int, classes: int = 3, side: int = 64, objects: int = 14) -> Instances:
    """Rectangles at random, each in front of the earlier ones."""
    draws = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    for number in range(1, objects + 1):
        x, y = draws.integers(0, side - 4, 2)
        width, height = draws.integers(6, 18, 2)
        labels[y : y + height, x : x + width] = number
    kept = np.unique(labels[labels > 0])
    labels = np.searchsorted(np.concatenate([[0], kept]), labels).astype(np.int32)
    return Instances(labels, draws.integers(1, classes, len(kept)), np.ones(len(kept)))


def shift(of: Instances, seed: int) -> Instances:
    """The same objects, a few pixels aside, some gone and some of another class."""
    draws = np.random.default_rng(seed)
    moved = Instances(np.roll(of.labels, (1, 1), (0, 1)), of.classes.copy(), of.probabilities)
    moved.classes[draws.random(len(of.classes)) < 0.15] = 1
    there = draws.random(len(of.classes)) < 0.8
    there &= moved.areas > 0
    return moved.keep(there)


def pixels_of(objects: Instances, number: int) -> list[set[tuple[int, int]]]:
    return [
        {(int(y), int(x)) for y, x in zip(*np.nonzero(objects.labels == index + 1), strict=True)}
        for index in np.flatnonzero(objects.classes == number)
    ]


def reference(found: Instances, true: Instances, number: int) -> dict[str, float]:
    """PQ, F1 and AJI of a class in one image, as their papers define them."""
    segments, truth = pixels_of(found, number), pixels_of(true, number)
    matches = {(g, p): len(g_of & p_of) / len(g_of | p_of) for g, g_of in enumerate(truth)
               for p, p_of in enumerate(segments) if 2 * len(g_of & p_of) > len(g_of | p_of)}  # fmt: skip
    whole = len(matches) + (len(segments) - len(matches)) / 2 + (len(truth) - len(matches)) / 2
    common, union, used = 0, 0, set()
    for each in truth:
        ious = [len(each & other) / len(each | other) for other in segments]
        if ious and max(ious) > 0:
            best = int(np.argmax(ious))
            used.add(best)
            common += len(each & segments[best])
            union += len(each | segments[best])
        else:
            union += len(each)
    union += sum(len(other) for index, other in enumerate(segments) if index not in used)
    return {"pq": sum(matches.values()) / whole, "object_f1": len(matches) / whole, "aji": common / union}


@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_the_papers(seed: int) -> None:
    true = draw(seed)
    found = shift(true, seed)
    counts = count_objects(found, true, 3)
    quality = quality_of_classes(counts)
    for number in (1, 2):
        for name, value in reference(found, true, number).items():
            assert quality[name][number - 1] == pytest.approx(value, abs=1e-12), name
    assert 0.05 < quality["pq"].mean() < 0.95


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_is_that_of_torchmetrics(seed: int) -> None:
    true = draw(seed)
    found = shift(true, seed)
    judge = PanopticQuality(things={1, 2}, stuffs={0}, return_per_class=True)
    maps = [torch.from_numpy(np.stack([np.concatenate([[0], each.classes])[each.labels], each.labels], axis=-1))[None]
            for each in (found, true)]  # fmt: skip
    quality = quality_of_classes(count_objects(found, true, 3))["pq"]
    np.testing.assert_allclose(quality, judge(*maps)[0, :2].numpy(), atol=1e-12)


def test_figures_of_tiles_are_of_their_sums_under_weights() -> None:
    counts = np.stack([count_objects(shift(true, 9), true, 3) for true in map(draw, range(5))])
    weights = np.array([[1.0, 1, 1, 1, 1], [0, 3, 0, 1, 0], [0, 0, 0, 0, 0]])
    figures = object_metrics(counts, weights)
    for row, weight in enumerate(weights[:2]):
        again = quality_of_classes(np.repeat(counts, weight.astype(int), axis=0).sum(0))
        for name, values in again.items():
            assert figures[name][row] == pytest.approx(values.mean(), abs=1e-12)
    assert all(np.isnan(values[2]) for values in figures.values())


def test_a_perfect_answer_scores_1_and_an_empty_one_0() -> None:
    true = draw(3)
    assert all((values == 1).all() for values in quality_of_classes(count_objects(true, true, 3)).values())
    nothing = true.keep(np.zeros(len(true.classes), bool))
    assert all((values == 0).all() for values in quality_of_classes(count_objects(nothing, true, 3)).values())
    assert all((values == 0).all() for values in quality_of_classes(count_objects(true, nothing, 3)).values())


def test_a_class_without_objects_is_left_out_of_the_mean() -> None:
    true = label_mask(np.kron(np.eye(3, dtype=int), np.ones((4, 4), int)))
    counts = count_objects(true, true, 3)[None]
    assert object_metrics(counts, np.ones((1, 1)))["pq"].tolist() == [1.0]


def test_touching_objects_taken_for_one_cost_panoptic_quality_and_not_dice() -> None:
    """Two equal squares, found as one rectangle: its IoU with each is 1/2, which is no match."""
    apart, merged = np.zeros((2, 10, 20), np.int32)
    apart[2:8, 2:8], apart[2:8, 8:14] = 1, 2
    merged[2:8, 2:14] = 1
    true = Instances(apart, np.ones(2, np.int64), np.ones(2))
    found = Instances(merged, np.ones(1, np.int64), np.ones(1))
    quality = quality_of_classes(count_objects(found, true, 2))
    assert (quality["pq"][0], quality["object_f1"][0]) == (0, 0)
    assert quality["aji"][0] == pytest.approx(72 / 144)  # both true ones take it: (36 + 36) / (72 + 72)


def test_ignored_pixels_belong_to_no_object() -> None:
    """A found object that is mostly ignored is no mistake, and one that is partly so is measured by the rest."""
    true, found = np.zeros((2, 12, 30), np.int64)
    true[2:8, 2:8] = found[2:8, 2:8] = found[2:8, 12:18] = found[2:8, 22:28] = 1
    ignored = np.zeros((12, 30), bool)
    ignored[2:4, 2:8] = ignored[2:6, 12:18] = True
    masked = np.where(ignored, -1, true)
    counts = count_objects(label_mask(found), label_mask(masked), 2, ignored)
    np.testing.assert_array_equal(counts, [[1, 1, 0, 1.0, 24, 24 + 36]])
