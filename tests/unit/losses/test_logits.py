import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from histill.losses.logits import cross_entropy, hard_cross_entropy, soft_cross_entropy, soft_dice

pytestmark = pytest.mark.unit

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Student logits, teacher logits [B, K, H, W] and valid rows [B]."""
    shape = (
        draw(st.integers(1, 4)),
        draw(st.integers(2, 4)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    valid = rng.random(shape[0]) < 0.6
    valid[0] = True
    return rng.normal(0, scale, shape), rng.normal(0, scale, shape), valid


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def reference_cross_entropy(z: np.ndarray, target: np.ndarray, weights: np.ndarray) -> float:
    terms = []
    log_q = log_softmax(z)
    for b, y, x in np.ndindex(target.shape):
        k = target[b, y, x]
        terms.append(-weights[k] * log_q[b, k, y, x])
    return float(np.mean(terms))


@settings(deadline=None, max_examples=40)
@given(batch=batches(), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_soft_cross_entropy_follows_its_equation(batch: Batch, temperature: float) -> None:
    student, teacher, valid = batch
    p, log_q = softmax(teacher[valid] / temperature), log_softmax(student[valid] / temperature)
    expected = temperature**2 * -(p * log_q).sum(1).mean()
    z, t, rows = map(torch.from_numpy, batch)
    got = soft_cross_entropy(z, t, rows, temperature)
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(expected, rel=1e-10)


@settings(deadline=None, max_examples=40)
@given(batch=batches())
def test_hard_cross_entropy_takes_the_teachers_argmax(batch: Batch) -> None:
    student, teacher, valid = batch
    expected = reference_cross_entropy(student[valid], teacher[valid].argmax(1), np.ones(student.shape[1]))
    got = hard_cross_entropy(*map(torch.from_numpy, (student, teacher, valid)))
    assert got.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(batch=batches(), weighted=st.booleans())
def test_cross_entropy_follows_its_equation(batch: Batch, weighted: bool) -> None:
    logits, other, valid = batch
    target = other.argmax(1)
    target[~valid] = 255
    weights = np.arange(1.0, logits.shape[1] + 1) if weighted else np.ones(logits.shape[1])
    z, y, rows = map(torch.from_numpy, (logits, target, valid))
    got = cross_entropy(z, y, rows, torch.from_numpy(weights) if weighted else None)
    assert got.item() == pytest.approx(
        reference_cross_entropy(logits[valid], target[valid], weights), rel=1e-10, abs=1e-12
    )


@settings(deadline=None, max_examples=40)
@given(batch=batches())
def test_soft_dice_follows_its_equation(batch: Batch) -> None:
    logits, other, valid = batch
    targets = softmax(other)
    terms = []
    for z, t in zip(logits[valid], targets[valid], strict=True):
        q = softmax(z[None])[0]
        for k in range(1, len(q)):
            terms.append(1 - (2 * (q[k] * t[k]).sum() + 1) / ((q[k] ** 2).sum() + (t[k] ** 2).sum() + 1))
    got = soft_dice(*map(torch.from_numpy, (logits, targets, valid)))
    assert got.item() == pytest.approx(np.mean(terms), rel=1e-10, abs=1e-12)


LOSSES: dict[str, Loss] = {
    "soft_cross_entropy": lambda z, t, valid: soft_cross_entropy(z, t, valid, 2.0),
    "hard_cross_entropy": hard_cross_entropy,
    "cross_entropy": lambda z, t, valid: cross_entropy(z, t.argmax(1), valid, torch.tensor([1.0, 3.0, 2.0])),
    "soft_dice": lambda z, t, valid: soft_dice(z, t.softmax(1), valid),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def pair(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, rows, 3, 4, 5, dtype=torch.float64, generator=generator)
    return student, teacher


@every_loss
@pytest.mark.parametrize("padding", [0.0, 1e30, math.inf, math.nan])
def test_padded_rows_change_nothing(loss: Loss, padding: float) -> None:
    student, teacher = pair(3)
    clean = student.clone().requires_grad_()
    loss(clean, teacher, torch.ones(3, dtype=torch.bool)).backward()

    filler = torch.full((2, 3, 4, 5), padding, dtype=torch.float64)
    padded = torch.cat([student, filler]).requires_grad_()
    valid = torch.tensor([True, True, True, False, False])
    value = loss(padded, torch.cat([teacher, filler]), valid)
    value.backward()

    assert value.item() == pytest.approx(loss(student, teacher, valid[:3]).item(), rel=1e-12)
    assert padded.grad is not None
    assert clean.grad is not None
    assert torch.equal(padded.grad[3:], torch.zeros_like(padded.grad[3:]))
    torch.testing.assert_close(padded.grad[:3], clean.grad, rtol=1e-12, atol=1e-15)


@every_loss
def test_no_valid_row_gives_zero_loss_and_zero_gradient(loss: Loss) -> None:
    student, teacher = pair(2)
    student.requires_grad_()
    value = loss(student, teacher, torch.zeros(2, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


@every_loss
def test_losses_of_workers_join_by_their_valid_rows(loss: Loss) -> None:
    student, teacher = pair(4)
    valid = torch.tensor([True, False, True, True])
    whole = loss(student, teacher, valid)
    parts = [loss(student[half], teacher[half], valid[half]) for half in (slice(0, 2), slice(2, 4))]
    assert whole.item() == pytest.approx((1 * parts[0].item() + 2 * parts[1].item()) / 3, rel=1e-12)


@every_loss
def test_gradient_matches_finite_differences(loss: Loss) -> None:
    student, teacher = pair(2)
    student = student[:, :, :2, :2].clone().requires_grad_()
    valid = torch.tensor([True, False])
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher[:, :, :2, :2], valid), student)


@every_loss
def test_half_precision_logits_are_raised_to_float32(loss: Loss) -> None:
    student, teacher = pair(2)
    value = loss(student.half(), teacher.half(), torch.ones(2, dtype=torch.bool))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(student, teacher, torch.ones(2, dtype=torch.bool)).item(), rel=1e-2)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = pair(2)
    teacher.requires_grad_()
    student.requires_grad_()
    soft_cross_entropy(student, teacher, torch.ones(2, dtype=torch.bool), 1.0).backward()
    assert teacher.grad is None


def test_soft_cross_entropy_ignores_a_shift_of_the_logits() -> None:
    student, teacher = pair(2)
    valid = torch.ones(2, dtype=torch.bool)
    shifted = soft_cross_entropy(student, teacher - teacher[:, :1], valid, 2.0)
    torch.testing.assert_close(shifted, soft_cross_entropy(student, teacher, valid, 2.0))


def test_soft_cross_entropy_is_least_at_the_teacher_and_equals_its_entropy_there() -> None:
    student, teacher = pair(2)
    valid = torch.ones(2, dtype=torch.bool)
    p = (teacher / 2).softmax(1)
    least = 4 * -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(teacher, teacher, valid, 2.0), least)
    assert soft_cross_entropy(student, teacher, valid, 2.0) > least


def test_soft_dice_is_zero_at_a_soft_target() -> None:
    logits, _ = pair(2)
    valid = torch.ones(2, dtype=torch.bool)
    torch.testing.assert_close(
        soft_dice(logits, logits.softmax(1), valid), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_not_above_zero_is_refused(temperature: float) -> None:
    student, teacher = pair(1)
    with pytest.raises(ValueError, match="temperature"):
        soft_cross_entropy(student, teacher, torch.ones(1, dtype=torch.bool), temperature)
