"""The training task: the loss of a batch, and the reference that decisions are scored against."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from histill.config.pretrain_student import RckdLoss
from histill.config.runs import SupervisedLoss
from histill.errors import InputError
from histill.losses.logits import soft_cross_entropy
from histill.metrics.overlap import count_confusion
from histill.models.resample import resize_logits
from histill.outputs import OutputSpec
from histill.stream.responses import STEP, decode_levels, encode_logits, levels_to_logits
from histill.stream.tile_batch import TileBatch
from histill.tasks.responses import Responses, logits_of_levels
from histill.tasks.training_task import TrainingTask
from histill.teachers.network import NetworkTeacher
from histill.teachers.teacher import Teacher

pytestmark = pytest.mark.unit

CLASSES = ("background", "nucleus")
OUTPUTS = OutputSpec("segmentation", CLASSES)
BOUNDED = OutputSpec("segmentation", (*CLASSES, "boundary"))


def rckd(outputs: OutputSpec, loss: RckdLoss, teacher: Teacher | None) -> TrainingTask:
    return TrainingTask(outputs, loss, Responses(teacher), scored_by_teacher=True)


def rckd_loss(**weights: float) -> RckdLoss:
    """Of weights by term, and the temperature of the soft one."""
    temperature = {"temperature": weights.pop("temperature", 1.0)}
    terms = {name: {"weight": weight} for name, weight in weights.items()}
    terms["soft_cross_entropy"] = terms.get("soft_cross_entropy", {}) | temperature
    return RckdLoss.model_validate(terms)


def supervised(outputs: OutputSpec, dice: float, boundary_px: int = 0, deep: float = 0.0) -> TrainingTask:
    """Cross-entropy with masks, plus `dice` times the soft Dice loss."""
    loss = SupervisedLoss.model_validate({"dice": {"weight": dice}, "deep": {"weight": deep}})
    return TrainingTask(outputs, loss, boundary_px=boundary_px)


class Pointwise(nn.Module):
    """A minimal network: logits from each pixel's color."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, classes, 1)

    def forward(self, tiles: Tensor) -> Tensor:
        return self.layer(tiles / 255)


def batch(**changes: Any) -> TileBatch:
    random = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "student": torch.randint(256, (3, 3, 8, 8), generator=random, dtype=torch.uint8),
        "teacher": None,
        "valid": torch.tensor([True, True, False]),
        "index": torch.tensor([0, 1, -1]),
        "label": torch.tensor([1, 0, -1]),
        "mask": torch.randint(2, (3, 8, 8), generator=random, dtype=torch.uint8),
        "response": torch.randint(1, 256, (3, 1, 8, 8), generator=random, dtype=torch.uint8),
        "planned": 2,
    }
    return TileBatch(**values | changes)


def network_teacher() -> NetworkTeacher:
    return NetworkTeacher(Pointwise().requires_grad_(False).eval(), OUTPUTS, "digest", 0.5, 8, 8)


def both_views(size_px: int) -> TileBatch:
    """Without cached responses: the teacher sees tiles at 8 px, the student at `size_px`."""
    teacher = batch().student
    student = nn.functional.adaptive_avg_pool2d(teacher.float(), size_px).to(torch.uint8)
    return batch(student=student, teacher=teacher, response=None)


@pytest.mark.parametrize("size_px", [4, 8])
def test_rckd_is_the_weighted_sum_of_its_terms(size_px: int) -> None:
    model, given = Pointwise(), batch(student=both_views(size_px).student)
    weights = rckd_loss(temperature=2.0, soft_cross_entropy=0.5, hard_cross_entropy=0.25, soft_dice=2.0)
    terms = rckd(OUTPUTS, weights, None).loss(model, given)
    expected = 0.5 * terms.parts["soft_cross_entropy"] + 0.25 * terms.parts["hard_cross_entropy"]
    expected += 2.0 * terms.parts["soft_dice"]
    torch.testing.assert_close(terms.loss.detach(), expected)
    assert given.response is not None
    teacher = resize_logits(OUTPUTS.unpack(levels_to_logits(given.response)), size_px)
    soft = soft_cross_entropy(model(given.student.float()), teacher, given.valid, 2.0)
    torch.testing.assert_close(terms.parts["soft_cross_entropy"], soft.detach())
    assert not any(part.requires_grad for part in terms.parts.values())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("size_px", [16, 8, 4, 3, 1])
def test_levels_shrink_to_the_mean_of_their_probabilities(classes: int, size_px: int) -> None:
    random = torch.Generator().manual_seed(1)
    levels = torch.randint(1, 256, (2, classes - 1, 16, 16), generator=random, dtype=torch.uint8)
    levels[0] = 1  # maximum confidence
    untouched = levels.clone()
    found = logits_of_levels(levels, size_px, OutputSpec("segmentation", tuple("abcd"[:classes])))
    exact = (levels.double() - 128) * (10 / 127)
    exact = torch.cat([torch.zeros_like(exact[:, :1]), exact], 1).softmax(1)
    expected = nn.functional.adaptive_avg_pool2d(exact, size_px)
    torch.testing.assert_close(found.softmax(1).double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(levels, untouched)


def test_rckd_leaves_out_terms_without_weight() -> None:
    assert rckd(OUTPUTS, RckdLoss(), None).loss(Pointwise(), batch()).parts.keys() == {"soft_cross_entropy"}


def test_padded_rows_have_no_part_in_any_loss() -> None:
    whole, model = batch(), Pointwise()
    rows = {name: value[:2] for name, value in vars(whole).items() if isinstance(value, Tensor)}
    kept = batch(**rows)
    assert len(kept.student) == 2
    for task in (rckd(OUTPUTS, rckd_loss(hard_cross_entropy=1.0, soft_dice=1.0), None), supervised(OUTPUTS, 1.0)):
        torch.testing.assert_close(task.loss(model, whole).loss, task.loss(model, kept).loss)


@pytest.mark.parametrize("size_px", [4, 8])
def test_a_student_learns_from_a_live_network_teacher(size_px: int) -> None:
    """The teacher runs in inference mode, but its logits must still be usable in a backward pass."""
    model = Pointwise()
    task = rckd(OUTPUTS, rckd_loss(hard_cross_entropy=1.0, soft_dice=1.0), network_teacher())
    task.loss(model, both_views(size_px)).loss.backward()
    assert model.layer.weight.grad is not None
    assert model.layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("size_px", [4, 8])
def test_live_and_cached_responses_give_the_same_loss(size_px: int) -> None:
    teacher, model, given = network_teacher(), Pointwise(), both_views(size_px)
    assert given.teacher is not None
    logits = teacher.respond(given.teacher).clone()
    stored = [encode_logits(relative.numpy()) for relative in logits[:, 1:] - logits[:, :1]]
    levels = torch.from_numpy(np.stack([decode_levels(data, 1, 8) for data in stored]))
    cached = batch(student=given.student, response=levels)
    live_task, cached_task = rckd(OUTPUTS, RckdLoss(), teacher), rckd(OUTPUTS, RckdLoss(), None)
    live, from_cache = live_task.loss(model, given).loss, cached_task.loss(model, cached).loss
    torch.testing.assert_close(live, from_cache, atol=STEP, rtol=0)  # 8-bit quantization
    assert torch.equal(live_task.reference(given), logits.argmax(1))
    clear = (logits[:, 1] - logits[:, 0]).abs() > STEP
    assert torch.equal(cached_task.reference(cached)[clear], logits.argmax(1)[clear])


@pytest.mark.parametrize("teacher", [None, network_teacher()], ids=["no teacher", "no view for it"])
def test_rckd_needs_a_response_or_a_teacher_and_its_view(teacher: NetworkTeacher | None) -> None:
    with pytest.raises(RuntimeError, match="no response"):
        rckd(OUTPUTS, RckdLoss(), teacher).loss(Pointwise(), batch(response=None))


def test_a_network_teacher_sees_a_window_at_the_resolution_of_a_whole_tile() -> None:
    sides: list[int] = []

    class Watched(Pointwise):
        def forward(self, tiles: Tensor) -> Tensor:
            sides.append(tiles.shape[-1])
            return super().forward(tiles)

    teacher = NetworkTeacher(Watched().requires_grad_(False).eval(), OUTPUTS, "digest", 0.5, 8, 4)
    for side in (8, 4):
        assert teacher.respond(batch().student[..., :side, :side]).shape == (3, 2, side, side)
    assert sides == [4, 2]


def test_supervised_follows_the_mask_at_the_networks_size() -> None:
    mask = torch.zeros(3, 8, 8, dtype=torch.uint8)
    mask[:, :4] = 1
    given, model = batch(mask=mask, student=both_views(4).student), Pointwise()
    terms = supervised(OUTPUTS, 0.5).loss(model, given)
    target = torch.zeros(3, 4, 4, dtype=torch.int64)
    target[:, :2] = 1
    expected = nn.functional.cross_entropy(model(given.student.float())[:2], target[:2]).detach()
    torch.testing.assert_close(terms.parts["cross_entropy"], expected)
    torch.testing.assert_close(terms.loss.detach(), expected + 0.5 * terms.parts["dice"])
    reference = supervised(OUTPUTS, 0.5).reference(given)
    assert reference.dtype == torch.int64
    assert torch.equal(reference, mask.long())


def test_a_mask_of_an_unnamed_class_is_refused() -> None:
    mask = torch.zeros(3, 8, 8, dtype=torch.uint8)
    mask[1, 0, 0] = 4
    said = r"^the mask of tile 1 holds the value 4 and 0 to 1 was expected \(background, nucleus\); correct the mask"
    with pytest.raises(InputError, match=said):
        supervised(OUTPUTS, 1.0).loss(Pointwise(), batch(mask=mask))


def test_a_mask_does_not_hold_the_boundary() -> None:
    """It is generated, not read: a mask that contains its value is invalid."""
    mask = torch.zeros(3, 8, 8, dtype=torch.uint8)
    mask[0, 0, 0] = 2
    with pytest.raises(InputError, match=r"tile 0 holds the value 2 and 0 to 1 was expected \(background, nucleus\)"):
        supervised(BOUNDED, 1.0, boundary_px=1).loss(Pointwise(3), batch(mask=mask))


@pytest.mark.parametrize("size_px", [4, 8])
def test_a_boundary_is_as_wide_as_is_said_at_the_networks_size(size_px: int) -> None:
    mask = torch.zeros(3, 8, 8, dtype=torch.uint8)
    mask[:, :4] = 1
    given, model = batch(mask=mask, student=both_views(size_px).student), Pointwise(3)
    task = supervised(BOUNDED, 0.0, boundary_px=1)
    target = torch.zeros(2, size_px, size_px, dtype=torch.int64)
    target[:, : size_px // 2] = 1
    target[:, size_px // 2 - 1] = 2
    expected = nn.functional.cross_entropy(model(given.student.float())[:2], target).detach()
    torch.testing.assert_close(task.loss(model, given).loss.detach(), expected)
    assert torch.equal(task.reference(given), mask.long())  # the reference has no boundary class


def test_boundaries_are_merged_before_they_are_judged() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 3, 8, 8, generator=random)
    given = batch(response=torch.randint(1, 256, (3, 2, 8, 8), generator=random, dtype=torch.uint8))
    assert given.mask is not None
    assert given.response is not None
    merged = (logits.softmax(1)[:, 0] < 0.5).long()
    teacher = (OUTPUTS.unpack(levels_to_logits(given.response)).softmax(1)[:, 0] < 0.5).long()
    for task, reference in (
        (supervised(BOUNDED, 1.0, boundary_px=1), given.mask.long()),
        (rckd(BOUNDED, RckdLoss(), None), teacher),
    ):
        metric = task.build_metric(np.array([0, 1]))
        metric.update(logits, given)
        assert torch.equal(metric.state, count_confusion(merged[given.valid], reference[given.valid], 2).sum(0))


def test_supervised_needs_masks() -> None:
    with pytest.raises(RuntimeError, match="no masks"):
        supervised(OUTPUTS, 1.0).loss(Pointwise(), batch(mask=None))
