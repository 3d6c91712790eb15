"""Ignored pixels count in no loss, gradient, boundary or metric, on any number of workers."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from histill.config.distill_student import DistillLoss
from histill.config.runs import SupervisedLoss
from histill.errors import InputError
from histill.evaluate.shown_tiles import _dice
from histill.losses.logits import cross_entropy, soft_dice
from histill.outputs import OutputSpec
from histill.stream.tile_batch import TileBatch
from histill.tasks.boundary import add_boundary
from histill.tasks.masks import measure_labeled, read_masks
from histill.tasks.responses import Responses
from histill.tasks.training_task import TrainingTask
from histill.tiles.masks import IGNORED

pytestmark = pytest.mark.unit
SIDE, CLASSES = 6, ("background", "gland", "stroma")
OUTPUTS = OutputSpec("segmentation", CLASSES)


def supervised(outputs: OutputSpec, dice: float, boundary_px: int = 0, deep: float = 0.0) -> TrainingTask:
    """Cross-entropy with masks, plus `dice` times the soft Dice loss."""
    loss = SupervisedLoss.model_validate({"dice": {"weight": dice}, "deep": {"weight": deep}})
    return TrainingTask(outputs, loss, boundary_px=boundary_px)


def drawn(tiles: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits, float64 [B, K, H, W], and masks, uint8, a third of each ignored; the last is ignored entirely."""
    rng = np.random.default_rng(5)
    masks = rng.integers(0, len(CLASSES), (tiles, SIDE, SIDE)).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.33] = IGNORED
    masks[-1] = IGNORED
    return rng.normal(0, 2, (tiles, len(CLASSES), SIDE, SIDE)), masks


def batch_of(masks: np.ndarray, valid: list[bool] | None = None, planned: int | None = None) -> TileBatch:
    tiles = len(masks)
    return TileBatch(
        student=torch.zeros(tiles, 3, SIDE, SIDE, dtype=torch.uint8),
        teacher=None,
        valid=torch.tensor([True] * tiles if valid is None else valid),
        index=torch.arange(tiles),
        label=None,
        mask=torch.from_numpy(masks),
        response=None,
        planned=planned or tiles,
    )


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(0)
    return z - np.log(np.exp(z).sum(0))


def expected_terms(logits: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """Reference by loops: cross-entropy averaged over labeled pixels; 1 - Dice over classes and tiles with any."""
    entropies, gaps = [], []
    for z, mask in zip(logits, masks, strict=True):
        known = mask != IGNORED
        log_q = log_softmax(z)
        entropies += [-log_q[mask[y, x], y, x] for y, x in np.argwhere(known)]
        for k in range(1, len(z)) if known.any() else ():
            q, t = np.exp(log_q[k])[known], (mask[known] == k).astype(float)
            gaps.append(1 - (2 * (q * t).sum() + 1) / ((q**2).sum() + (t**2).sum() + 1))
    return float(np.mean(entropies)), float(np.mean(gaps))


class Fixed(nn.Module):
    """A model whose outputs are its parameters, whatever its input; those of the tiles from `first` on."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.from_numpy(logits))
        self.rows = slice(None)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.logits[self.rows]


def test_terms_are_means_over_what_is_labeled() -> None:
    logits, masks = drawn()
    student = Fixed(logits)
    found = supervised(OUTPUTS, dice=0.5).loss(student, batch_of(masks))
    entropy, gap = expected_terms(logits, masks)
    assert found.parts["cross_entropy"].item() == pytest.approx(entropy, rel=1e-12)
    assert found.parts["dice"].item() == pytest.approx(gap, rel=1e-12)
    assert found.loss.item() == pytest.approx(entropy + 0.5 * gap, rel=1e-12)
    found.loss.backward()
    assert student.logits.grad is not None
    ignored = torch.from_numpy(masks == IGNORED)[:, None].expand_as(student.logits)
    assert not student.logits.grad[ignored].any()
    assert student.logits.grad[~ignored].all()


@pytest.mark.parametrize("there", [0.0, 1e30, float("nan"), float("inf")])
def test_what_the_model_says_of_ignored_pixels_changes_nothing(there: float) -> None:
    logits, masks = drawn()
    results = []
    for shown in (logits, np.where((masks == IGNORED)[:, None], there, logits)):
        student = Fixed(shown)
        loss = supervised(OUTPUTS, dice=1.0, boundary_px=0).loss(student, batch_of(masks)).loss
        loss.backward()
        assert student.logits.grad is not None
        results.append((loss.item(), student.logits.grad))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_a_tile_that_is_ignored_has_no_weight() -> None:
    logits, masks = drawn()
    task = supervised(OUTPUTS, dice=1.0)
    whole, without = (task.loss(Fixed(logits[:n]), batch_of(masks[:n])).loss.item() for n in (4, 3))
    assert whole == pytest.approx(without, rel=1e-12)
    nothing = Fixed(logits[3:])
    loss = task.loss(nothing, batch_of(masks[3:])).loss
    loss.backward()
    assert loss.item() == 0
    assert nothing.logits.grad is not None
    assert not nothing.logits.grad.any()


@pytest.mark.parametrize("cuts", [(2,), (1, 3), (3,)], ids=str)
def test_any_number_of_workers_gives_the_same_loss_and_gradient(cuts: tuple[int, ...]) -> None:
    """Combined as in the loop: sum of loss x valid tiles / planned tiles. One tile is padding, with no weight."""
    logits, masks = drawn(5)
    valid = [True, True, False, True, True]
    task = supervised(OUTPUTS, dice=1.0)
    alone = Fixed(logits)
    kept = np.array(valid)
    entropy, gap = expected_terms(logits[kept], masks[kept])
    whole = task.loss(alone, batch_of(masks, valid)).loss
    assert whole.item() == pytest.approx(entropy + gap, rel=1e-12)
    whole.backward()

    bounds = [0, *cuts, len(masks)]
    slices = [slice(*pair) for pair in pairwise(bounds)]
    batches = [batch_of(masks[part], valid[part], planned=sum(valid)) for part in slices]
    counts: list[Tensor] = []

    def note(each: Tensor) -> Tensor:
        counts.append(each)
        return each

    for batch in batches:
        measure_labeled(batch, note)
    total = torch.stack(counts).sum(0)
    shared = Fixed(logits)
    joined = 0.0
    for part, batch in zip(slices, batches, strict=True):
        shared.rows = part
        loss = task.loss(shared, replace(batch, labeled=measure_labeled(batch, lambda _: total))).loss
        share = batch.valid.sum() / batch.planned
        (loss * share).backward()
        joined += (loss * share).item()
    assert joined == pytest.approx(whole.item(), rel=1e-12)
    assert shared.logits.grad is not None
    torch.testing.assert_close(shared.logits.grad, alone.logits.grad, rtol=1e-12, atol=1e-15)


def test_without_ignored_pixels_nothing_changes() -> None:
    logits, masks = drawn()
    masks = masks % len(CLASSES)
    share = measure_labeled(batch_of(masks))
    assert (share.pixels.item(), share.tiles.item()) == (1.0, 1.0)
    found = supervised(OUTPUTS, dice=0).loss(Fixed(logits), batch_of(masks)).loss
    expected = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(masks).long())
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_distillation_with_masks_ignores_them_too() -> None:
    logits, masks = drawn()
    response = torch.full((len(masks), len(CLASSES) - 1, SIDE, SIDE), 128, dtype=torch.uint8)
    batch = replace(batch_of(masks), response=response)
    student = Fixed(logits)
    objective = DistillLoss.model_validate({"divergence": None, "features": None, "cross_entropy": {}})
    loss = TrainingTask(OUTPUTS, objective, Responses(None)).loss(student, batch).loss
    assert loss.item() == pytest.approx(expected_terms(logits, masks)[0], rel=1e-12)
    loss.backward()
    assert student.logits.grad is not None
    assert not student.logits.grad[:, 0][torch.from_numpy(masks == IGNORED)].any()


def test_losses_on_their_own() -> None:
    logits, masks = drawn()
    target = read_masks(batch_of(masks), CLASSES, str)
    valid = torch.ones(len(masks), dtype=torch.bool)
    z = torch.from_numpy(logits)
    entropy, gap = expected_terms(logits, masks)
    one_hot = nn.functional.one_hot(target.clamp_min(0), len(CLASSES)).movedim(-1, 1).double()
    assert cross_entropy(z, target, valid).item() == pytest.approx(entropy * np.mean(masks != IGNORED), rel=1e-12)
    assert soft_dice(z, one_hot, valid, target >= 0).item() == pytest.approx(gap * 3 / 4, rel=1e-12)


def test_figures_are_those_of_torchmetrics_without_the_ignored() -> None:
    logits, masks = drawn()
    task, batch = supervised(OUTPUTS, dice=0), batch_of(masks)
    metric = task.build_metric(np.arange(len(masks)))
    metric.update(torch.from_numpy(logits), batch)
    assert int(metric.state.sum()) == int((masks != IGNORED).sum())
    decided, reference = torch.from_numpy(logits).argmax(1), torch.from_numpy(masks).long()
    known = {"num_classes": len(CLASSES), "average": "none", "ignore_index": IGNORED}
    assert metric.compute()["miou"] == pytest.approx(MulticlassJaccardIndex(**known)(decided, reference).mean().item())
    assert metric.compute()["dice"] == pytest.approx(MulticlassF1Score(**known)(decided, reference)[1:].mean().item())
    changed = task.build_metric(np.arange(len(masks)))
    changed.update(torch.from_numpy(np.where((masks == IGNORED)[:, None], 9.0, logits)), batch)
    assert torch.equal(changed.state, metric.state)


@pytest.mark.parametrize("width", [1, 2])
def test_no_boundary_is_made_of_ignored_pixels(width: int) -> None:
    _, masks = drawn()
    mask = np.where(masks == IGNORED, -1, masks.astype(np.int64))
    expected = mask.copy()
    for tile, y, x in np.argwhere(mask > 0):
        near = mask[tile, max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        if len(set(near[near >= 0].tolist())) > 1:
            expected[tile, y, x] = 3
    np.testing.assert_array_equal(add_boundary(torch.from_numpy(mask), width, 3).numpy(), expected)
    assert (expected == 3).any()


def test_a_disc_in_the_void_has_no_edge() -> None:
    mask = torch.full((1, 9, 9), -1)
    mask[:, 3:6, 3:6] = 1
    assert torch.equal(add_boundary(mask, 1, 2), mask)


def test_a_value_without_a_class_is_named_and_the_ignored_is_none() -> None:
    _, masks = drawn()
    assert read_masks(batch_of(masks), CLASSES, str).min() == -1
    masks[1, 0, 0] = 7
    with pytest.raises(InputError, match="the mask of tile 1 holds the value 7 and 0 to 2 was expected"):
        read_masks(batch_of(masks), CLASSES, lambda row: f"tile {row}")


def test_dice_in_a_picture_leaves_them_out() -> None:
    reference = torch.tensor([[1, 1, -1, 0]])
    assert _dice(torch.tensor([[1, 0, 1, 0]]), reference) == pytest.approx(2 / 3)
    assert _dice(torch.tensor([[0, 0, 1, 0]]), torch.tensor([[0, 0, -1, 0]])) == 1.0
