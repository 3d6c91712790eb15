"""Each loss against a float64 reference written from its equation, in loops over tiles and pixels."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from histill.losses.feature import (
    attention_distance,
    feature_distance,
    grad_cam,
    mix_distances,
    resize_map,
)
from histill.losses.logits import (
    bernoulli_kl,
    binary_cross_entropy,
    cross_entropy,
    decoupled_kl,
    kl_divergence,
    soft_cross_entropy,
)
from histill.losses.relational import angle_relation, distance_relation, info_nce

pytestmark = pytest.mark.unit

SHAPES = st.sampled_from([(3, 4), (1, 2), (4, 3), (2, 3, 2, 3), (3, 4, 1, 2)])
few = settings(deadline=None, max_examples=30)


def drawn(seed: int, *shapes: tuple[int, ...], scale: float = 2.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, scale, shape) for shape in shapes]


def valid_rows(seed: int, count: int) -> np.ndarray:
    valid = np.random.default_rng(seed + 1).random(count) < 0.7
    valid[0] = True
    return valid


def pixels(logits: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The logits of every pixel (or tile) of the valid rows, [N, K]."""
    return np.moveaxis(logits[valid], 1, -1).reshape(-1, logits.shape[1])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


@few
@given(seed=st.integers(0, 10**6), shape=SHAPES, temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_kl_divergence(seed: int, shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = drawn(seed, shape, shape)
    valid = valid_rows(seed, shape[0])
    terms = [
        kl(softmax(t / temperature), softmax(s / temperature))
        for s, t in zip(pixels(student, valid), pixels(teacher, valid), strict=True)
    ]
    got = kl_divergence(*tensors(student, teacher, valid), temperature)
    assert got.item() == pytest.approx(temperature**2 * np.mean(terms), rel=1e-9, abs=1e-12)


@few
@given(seed=st.integers(0, 10**6), shape=SHAPES)
def test_kl_divergence_learns_what_soft_cross_entropy_does(seed: int, shape: tuple[int, ...]) -> None:
    student, teacher, valid = tensors(*drawn(seed, shape, shape), valid_rows(seed, shape[0]))
    gradients = []
    for loss in (kl_divergence, soft_cross_entropy):
        leaf = student.clone().requires_grad_()
        loss(leaf, teacher, valid, 2.0).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@few
@given(seed=st.integers(0, 10**6), shape=SHAPES, temperature=st.sampled_from([1.0, 3.0]))
def test_bernoulli_kl(seed: int, shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = drawn(seed, shape, shape)
    valid = valid_rows(seed, shape[0])
    terms = []
    for s, t in zip(pixels(student, valid), pixels(teacher, valid), strict=True):
        p, q = 1 / (1 + np.exp(-t / temperature)), 1 / (1 + np.exp(-s / temperature))
        terms.append(sum(kl(np.array([a, 1 - a]), np.array([b, 1 - b])) for a, b in zip(p, q, strict=True)))
    got = bernoulli_kl(*tensors(student, teacher, valid), temperature)
    assert got.item() == pytest.approx(temperature**2 * np.mean(terms), rel=1e-9)


@few
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(3, 4), (4, 3), (2, 3, 2, 3)]),
    temperature=st.sampled_from([1.0, 4.0]),
)
def test_decoupled_kl(seed: int, shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = drawn(seed, shape, shape)
    valid = valid_rows(seed, shape[0])
    target = np.random.default_rng(seed).integers(0, shape[1], (shape[0], *shape[2:]))
    terms = []
    for s, t, y in zip(pixels(student, valid), pixels(teacher, valid), target[valid].reshape(-1), strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        binary = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        others = kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
        terms.append(1.5 * binary + 8.0 * others)
    arguments = tensors(student, teacher, target, valid)
    got = decoupled_kl(*arguments, temperature, 1.5, 8.0)
    assert got.item() == pytest.approx(temperature**2 * np.mean(terms), rel=1e-8)


def test_decoupled_kl_is_the_plain_divergence_at_its_weights() -> None:
    student, teacher = (torch.from_numpy(each) for each in drawn(3, (1, 5), (1, 5)))
    valid, target = torch.tensor([True]), torch.tensor([2])
    rest = 1 - float(teacher.softmax(1)[0, 2])
    decoupled = decoupled_kl(student, teacher, target, valid, 1.0, 1.0, rest)
    torch.testing.assert_close(decoupled, kl_divergence(student, teacher, valid, 1.0))


def test_decoupled_kl_bears_a_teacher_that_is_certain() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[80.0, 0.0, -80.0]])
    loss = decoupled_kl(student, teacher, torch.tensor([0]), torch.tensor([True]), 1.0, 1.0, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@few
@given(seed=st.integers(0, 10**6), smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_smoothed_cross_entropy_with_tiles_that_have_no_label(seed: int, smoothing: float) -> None:
    (logits,) = drawn(seed, (6, 4))
    valid = valid_rows(seed, 6)
    target = np.random.default_rng(seed).integers(-1, 4, 6)
    total = 0.0
    for z, y in zip(logits[valid], target[valid], strict=True):
        wanted = np.full(4, smoothing / 4)
        if y >= 0:
            wanted[y] += 1 - smoothing
            total -= float(wanted @ np.log(softmax(z)))
    got = cross_entropy(*tensors(logits, target, valid), smoothing=smoothing)
    assert got.item() == pytest.approx(total / valid.sum(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_feature_distance(norm: str) -> None:
    student, teacher = drawn(0, (4, 3, 2, 2), (4, 3, 2, 2))
    valid = np.array([True, False, True, True])
    gaps = [abs(s - t) ** (2 if norm == "l2" else 1) for s, t in zip(student[valid], teacher[valid], strict=True)]
    got = feature_distance(*tensors(student, teacher, valid), norm)  # type: ignore[arg-type]
    assert got.item() == pytest.approx(np.mean(gaps), rel=1e-12)


def test_the_papers_resizing_is_half_the_maximum_and_half_bicubic() -> None:
    (features,) = drawn(1, (2, 3, 4, 4))
    half = resize_map(torch.from_numpy(features), 2, 2, "half_max_half_bicubic").numpy()
    # Bicubic with A = -0.75 at the middle of four pixels: weights -0.09375, 0.59375, 0.59375, -0.09375.
    kernel = np.array([-0.09375, 0.59375, 0.59375, -0.09375])
    for b, c, row, column in np.ndindex(2, 3, 2, 2):
        window = features[b, c, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        rows, columns = (np.clip(np.arange(2 * at - 1, 2 * at + 3), 0, 3) for at in (row, column))
        bicubic = kernel @ features[b, c][np.ix_(rows, columns)] @ kernel
        assert half[b, c, row, column] == pytest.approx((window.max() + bicubic) / 2, rel=1e-9)


def test_other_resizings_average_or_take_the_maximum() -> None:
    features = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize_map(features, 2, 2, "area").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resize_map(features, 2, 2, "adaptive_max").flatten().tolist() == [5.0, 7.0, 13.0, 15.0]
    assert resize_map(features, 4, 4, "half_max_half_bicubic") is features


def test_mixed_distances() -> None:
    distances, mixture = np.array([1.0, 4.0, 2.0]), np.array([0.3, -1.0, 2.0])
    got = mix_distances(*tensors(distances, mixture))
    assert got.item() == pytest.approx(float(softmax(mixture) @ distances), rel=1e-12)


def test_grad_cam() -> None:
    features, gradient = drawn(2, (2, 3, 2, 4), (2, 3, 2, 4))
    got = grad_cam(*tensors(features, gradient)).numpy()
    for b, row, column in np.ndindex(2, 2, 4):
        score = sum(gradient[b, c].mean() * features[b, c, row, column] for c in range(3))
        assert got[b, row, column] == pytest.approx(max(score, 0.0), rel=1e-12)


def test_attention_distance() -> None:
    student, teacher = (abs(each) for each in drawn(4, (3, 3, 3), (3, 3, 3)))
    valid = np.array([True, True, False])
    terms = []
    for s, t in zip(student[valid], teacher[valid], strict=True):
        scaled = [(each - each.min()) / (each.max() - each.min()) for each in (s, t)]
        terms.append(math.sqrt(np.mean((scaled[0] - scaled[1]) ** 2)))
    got = attention_distance(*tensors(student, teacher, valid))
    assert got.item() == pytest.approx(np.mean(terms), rel=1e-6)


def test_attention_of_a_lower_resolution_is_brought_to_the_higher() -> None:
    coarse = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    fine = torch.nn.functional.interpolate(coarse[:, None], size=(4, 4), mode="bilinear")[:, 0]
    valid = torch.tensor([True])
    assert attention_distance(coarse, fine, valid).item() == pytest.approx(0, abs=1e-5)
    assert attention_distance(torch.ones(1, 1, 1), torch.ones(1, 4, 4), valid).item() == pytest.approx(0, abs=1e-5)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


@few
@given(seed=st.integers(0, 10**6))
def test_distance_relation(seed: int) -> None:
    student, teacher = drawn(seed, (6, 3), (6, 5))
    valid = valid_rows(seed, 6)
    chosen = np.flatnonzero(valid)
    pairs = [(i, j) for i in chosen for j in chosen if i != j]
    found = []
    for each in (student, teacher):
        distances = np.array([np.linalg.norm(each[i] - each[j]) for i, j in pairs])
        found.append(distances / distances.mean() if pairs else distances)
    expected = np.mean([huber(s - t) for s, t in zip(*found, strict=True)]) if pairs else 0.0
    assert distance_relation(*tensors(student, teacher, valid)).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@few
@given(seed=st.integers(0, 10**6))
def test_angle_relation(seed: int) -> None:
    student, teacher = drawn(seed, (5, 3), (5, 4))
    valid = valid_rows(seed, 5)
    chosen = np.flatnonzero(valid)
    terms = []
    for i, j, k in ((i, j, k) for i in chosen for j in chosen for k in chosen if len({i, j, k}) == 3):
        cosines = []
        for each in (student, teacher):
            a, b = each[i] - each[j], each[k] - each[j]
            cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        terms.append(huber(cosines[0] - cosines[1]))
    expected = np.mean(terms) if terms else 0.0
    assert angle_relation(*tensors(student, teacher, valid)).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@few
@given(seed=st.integers(0, 10**6), queued=st.sampled_from([0, 1, 7]))
def test_info_nce(seed: int, queued: int) -> None:
    query, key, queue = drawn(seed, (4, 3), (4, 3), (queued, 3))
    valid = valid_rows(seed, 4)

    def unit(row: np.ndarray) -> np.ndarray:
        return np.asarray(row / np.linalg.norm(row))

    terms = []
    for i in np.flatnonzero(valid):
        others = [unit(key[j]) for j in np.flatnonzero(valid)] + [unit(row) for row in queue]
        scores = np.array([unit(query[i]) @ other / 0.2 for other in others])
        own = unit(query[i]) @ unit(key[i]) / 0.2
        terms.append(-own + math.log(np.exp(scores - scores.max()).sum()) + scores.max())
    got = info_nce(*tensors(query, key, queue, valid), 0.2)
    assert got.item() == pytest.approx(np.mean(terms), rel=1e-9, abs=1e-12)


MAPS: list[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor], tuple[int, ...]]] = [
    ("kl", lambda s, t, v: kl_divergence(s, t, v, 2.0), (4, 3)),
    ("bernoulli", lambda s, t, v: bernoulli_kl(s, t, v, 2.0), (4, 3)),
    ("decoupled", lambda s, t, v: decoupled_kl(s, t, torch.zeros(4, dtype=torch.long), v, 2.0, 1.0, 1.0), (4, 3)),
    ("l2", lambda s, t, v: feature_distance(s, t, v, "l2"), (4, 3, 2, 2)),
    ("attention", attention_distance, (4, 3, 3)),
    ("distances", distance_relation, (4, 3)),
    ("angles", angle_relation, (4, 3)),
    ("info_nce", lambda s, t, v: info_nce(s, t, torch.ones(2, 3), v, 0.1), (4, 3)),
]


@pytest.mark.parametrize(("loss", "shape"), [each[1:] for each in MAPS], ids=[each[0] for each in MAPS])
@pytest.mark.parametrize("rows", [[True, False, True, True], [False, False, False, False], [True, False, False, False]])
def test_padding_moves_nothing_whatever_it_holds(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, ...], rows: list[bool]
) -> None:
    valid = torch.tensor(rows)
    student, teacher = (torch.from_numpy(each).float() for each in drawn(5, shape, shape))
    student[~valid], teacher[~valid] = float("nan"), float("inf")
    student.requires_grad_()
    teacher.requires_grad_()
    value = loss(student, teacher, valid)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[~valid] == 0).all()
    assert teacher.grad is None
    if not valid.any():
        assert value.item() == 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_above_zero(temperature: float) -> None:
    z, valid = torch.zeros(2, 3), torch.ones(2, dtype=torch.bool)
    for loss in (
        lambda: kl_divergence(z, z, valid, temperature),
        lambda: bernoulli_kl(z, z, valid, temperature),
        lambda: info_nce(z, z, z, valid, temperature),
    ):
        with pytest.raises(ValueError, match="temperature is"):
            loss()


@few
@given(seed=st.integers(0, 10**6), smoothing=st.sampled_from([0.0, 0.2]))
def test_binary_cross_entropy_with_tiles_that_have_no_label(seed: int, smoothing: float) -> None:
    (logits,) = drawn(seed, (5, 3))
    valid = valid_rows(seed, 5)
    target = np.random.default_rng(seed).integers(0, 2, (5, 3))
    target[4] = -1
    total = 0.0
    for z, y in zip(logits[valid], target[valid], strict=True):
        if y[0] >= 0:
            p, t = 1 / (1 + np.exp(-z)), (1 - smoothing) * y + smoothing / 2
            total -= float((t * np.log(p) + (1 - t) * np.log(1 - p)).sum())
    got = binary_cross_entropy(*tensors(logits, target, valid), smoothing)
    assert got.item() == pytest.approx(total / valid.sum(), rel=1e-9, abs=1e-12)
