"""Tasks: what a batch's loss is, and against what decisions are scored."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from histill.config.runs import RckdLoss
from histill.distill.rckd import Rckd
from histill.distill.supervised import Supervised
from histill.errors import InputError
from histill.losses.dense import soft_cross_entropy
from histill.models.resolution import logits_at_size
from histill.stream.batches import TileBatch
from histill.teachers.cache import full_logits
from histill.teachers.network import NetworkTeacher

pytestmark = pytest.mark.unit

CLASSES = ("background", "nucleus")


class Pointwise(nn.Module):
    """The least network: logits from each pixel's colour."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.layer(tiles / 255)


def batch(**changes: Any) -> TileBatch:
    random = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "tiles": torch.randint(256, (3, 3, 8, 8), generator=random, dtype=torch.uint8),
        "valid": torch.tensor([True, True, False]),
        "index": torch.tensor([0, 1, -1]),
        "mask": torch.randint(2, (3, 8, 8), generator=random),
        "response": torch.randn(3, 1, 8, 8, generator=random) * 4,
        "planned": 2,
    }
    return TileBatch(**values | changes)


def network_teacher() -> NetworkTeacher:
    return NetworkTeacher(Pointwise().requires_grad_(False).eval(), CLASSES, "digest", 0.5, 8)


@pytest.mark.parametrize("size_px", [4, 8])
def test_rckd_is_the_weighted_sum_of_its_terms(size_px: int) -> None:
    model, given = Pointwise(), batch()
    weights = RckdLoss(temperature=2.0, soft=0.5, hard=0.25, dice=2.0)
    terms = Rckd(CLASSES, size_px, weights, None).loss(model, given)
    expected = 0.5 * terms.parts["soft"] + 0.25 * terms.parts["hard"] + 2.0 * terms.parts["dice"]
    torch.testing.assert_close(terms.loss.detach(), expected)
    student = model(nn.functional.adaptive_avg_pool2d(given.tiles.float(), size_px))
    assert given.response is not None
    teacher = logits_at_size(full_logits(given.response), size_px)
    torch.testing.assert_close(terms.parts["soft"], soft_cross_entropy(student, teacher, given.valid, 2.0).detach())
    assert not any(part.requires_grad for part in terms.parts.values())


def test_rckd_leaves_out_terms_without_weight() -> None:
    assert Rckd(CLASSES, 8, RckdLoss(), None).loss(Pointwise(), batch()).parts.keys() == {"soft"}


def test_padded_rows_have_no_part_in_any_loss() -> None:
    whole, model = batch(), Pointwise()
    assert whole.mask is not None
    assert whole.response is not None
    kept = batch(
        tiles=whole.tiles[:2],
        valid=whole.valid[:2],
        index=whole.index[:2],
        mask=whole.mask[:2],
        response=whole.response[:2],
    )
    for task in (Rckd(CLASSES, 8, RckdLoss(hard=1.0, dice=1.0), None), Supervised(CLASSES, 8, 1.0)):
        torch.testing.assert_close(task.loss(model, whole).loss, task.loss(model, kept).loss)


@pytest.mark.parametrize("size_px", [4, 8])
def test_a_student_learns_from_a_live_network_teacher(size_px: int) -> None:
    """The teacher answers in inference mode, and what it says must still serve a backward pass."""
    model = Pointwise()
    task = Rckd(CLASSES, size_px, RckdLoss(hard=1.0, dice=1.0), network_teacher())
    task.loss(model, batch(response=None)).loss.backward()
    assert model.layer.weight.grad is not None
    assert model.layer.weight.grad.abs().sum() > 0


def test_live_and_cached_responses_give_the_same_loss() -> None:
    teacher, model, given = network_teacher(), Pointwise(), batch(response=None)
    logits = teacher.respond(given.tiles).clone()
    cached = batch(response=logits[:, 1:] - logits[:, :1])
    live_task, cached_task = Rckd(CLASSES, 8, RckdLoss(), teacher), Rckd(CLASSES, 8, RckdLoss(), None)
    torch.testing.assert_close(live_task.loss(model, given).loss, cached_task.loss(model, cached).loss)
    assert torch.equal(live_task.reference(given), logits.argmax(1))


def test_rckd_needs_a_response_or_a_teacher() -> None:
    with pytest.raises(RuntimeError, match="no response"):
        Rckd(CLASSES, 8, RckdLoss(), None).loss(Pointwise(), batch(response=None))


def test_supervised_follows_the_mask_at_the_networks_size() -> None:
    mask = torch.zeros(3, 8, 8, dtype=torch.int64)
    mask[:, :4] = 1
    given, model = batch(mask=mask), Pointwise()
    terms = Supervised(CLASSES, 4, 0.5).loss(model, given)
    logits = model(nn.functional.adaptive_avg_pool2d(given.tiles.float(), 4))
    target = torch.zeros(3, 4, 4, dtype=torch.int64)
    target[:, :2] = 1
    expected = nn.functional.cross_entropy(logits[:2], target[:2]).detach()
    torch.testing.assert_close(terms.parts["cross_entropy"], expected)
    torch.testing.assert_close(terms.loss.detach(), expected + 0.5 * terms.parts["dice"])
    assert torch.equal(Supervised(CLASSES, 4, 0.5).reference(given), mask)


def test_a_mask_of_an_unnamed_class_is_refused() -> None:
    mask = torch.zeros(3, 8, 8, dtype=torch.int64)
    mask[1, 0, 0] = 4
    with pytest.raises(InputError, match="class 4 and the network learns 2"):
        Supervised(CLASSES, 8, 1.0).loss(Pointwise(), batch(mask=mask))
