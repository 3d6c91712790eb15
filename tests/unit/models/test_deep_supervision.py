"""Deep supervision: which stages have outputs in which mode, and how they enter the loss."""

from typing import Any

import pytest
import torch
from torch import Tensor

from histill.config.pretrain_student import RckdLoss
from histill.config.runs import SupervisedLoss
from histill.losses.layers import Layers
from histill.losses.logits import cross_entropy, soft_cross_entropy, soft_dice
from histill.models.projection import ProjectedStudent, StudentOutput
from histill.models.resample import resize_logits
from histill.models.segmenter import build_segmenter
from histill.outputs import OutputSpec
from histill.stream.responses import levels_to_logits
from histill.stream.tile_batch import TileBatch
from histill.tasks.responses import Responses
from histill.tasks.training_task import TrainingTask

pytestmark = pytest.mark.unit

CLASSES = ("background", "nucleus")
OUTPUTS = OutputSpec("segmentation", CLASSES)


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


def deep(encoder: str = "csat_tiny", classes: int = 2) -> ProjectedStudent:
    torch.manual_seed(0)
    return ProjectedStudent(build_segmenter(encoder, classes, (16, 16, 8, 8, 8)), Layers(), deep_classes=classes)


def all_answers(model: ProjectedStudent, tiles: Tensor) -> list[Tensor]:
    """The logits of the model and of its deep stages."""
    answers = model(tiles)
    assert isinstance(answers, StudentOutput)
    return [answers.logits, *answers.deep]


def batch(**changes: Any) -> TileBatch:
    random = torch.Generator().manual_seed(0)
    values: dict[str, Any] = {
        "student": torch.randint(256, (3, 3, 64, 64), generator=random, dtype=torch.uint8),
        "teacher": None,
        "valid": torch.tensor([True, True, False]),
        "index": torch.tensor([0, 1, -1]),
        "label": None,
        "mask": torch.randint(2, (3, 64, 64), generator=random, dtype=torch.uint8),
        "response": torch.randint(1, 256, (3, 1, 64, 64), generator=random, dtype=torch.uint8),
        "planned": 2,
    }
    return TileBatch(**values | changes)


@pytest.mark.parametrize("encoder", ["csat_tiny", "resnet18", "efficientnet_b0", "convnextv2_atto"])
def test_deep_stages_answer_in_training_only(encoder: str) -> None:
    model, tiles = deep(encoder, 3), batch().student.float()
    answers = all_answers(model.train(), tiles)
    assert [tuple(answer.shape) for answer in answers] == [(3, 3, 64, 64), (3, 3, 16, 16), (3, 3, 16, 16)]
    torch.testing.assert_close(model.eval()(tiles), model.model(tiles))


def test_every_parameter_gets_a_gradient() -> None:
    model = deep().train()
    sum(answer.square().mean() for answer in all_answers(model, batch().student.float())).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_deep_answer_is_a_linear_function_of_one_position() -> None:
    head, features = deep().heads[1], torch.randn(1, 64, 4, 4)
    normed = head[0](features)
    moved = normed.clone()
    moved[..., 2, 1] += torch.randn(64)
    changed = (head[1:](moved) - head[1:](normed)).abs().sum((0, 1)) > 0
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[16:24, 8:16] = True  # the 32 px square of the tile that the position stands for, at stride 4
    assert torch.equal(changed, expected)


def test_rckd_adds_its_terms_for_each_deep_stage() -> None:
    model, given = deep().train(), batch()
    answers = all_answers(model, given.student.float())
    response = OUTPUTS.unpack(levels_to_logits(given.response))

    def terms(logits: Tensor) -> Tensor:
        teacher = resize_logits(response, logits.shape[-1])
        dice = soft_dice(logits, teacher.softmax(1), given.valid)
        return 0.5 * soft_cross_entropy(logits, teacher, given.valid, 2.0) + 0.25 * dice

    weights = rckd_loss(temperature=2.0, soft_cross_entropy=0.5, soft_dice=0.25, deep=0.75)
    found = TrainingTask(OUTPUTS, weights, Responses(None)).loss(model, given)
    torch.testing.assert_close(found.parts["deep"], terms(answers[1]) + terms(answers[2]))
    torch.testing.assert_close(found.loss, terms(answers[0]) + 0.75 * found.parts["deep"])


def test_masks_teach_each_deep_stage_too() -> None:
    model, given = deep().train(), batch()
    first, *stages = all_answers(model, given.student.float())
    coarse = given.mask[:, 2::4, 2::4].long()  # the pixel at the middle of each square, or just past it
    found = supervised(OUTPUTS, dice=0.0, deep=0.5).loss(model, given)
    expected = sum(cross_entropy(stage, coarse, given.valid) for stage in stages)
    torch.testing.assert_close(found.parts["deep"], expected)
    torch.testing.assert_close(found.loss, cross_entropy(first, given.mask.long(), given.valid) + 0.5 * expected)
