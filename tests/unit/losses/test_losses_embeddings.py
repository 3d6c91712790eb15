"""Each term on embeddings, of two teachers with weights, against a float64 reference written from its equation.

Gradients are compared with central differences of that reference.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from histill.losses.embedding import cosine_distance, smooth_l1_distance, squared_distance
from histill.losses.inputs import LossInputs
from histill.losses.term import Term
from histill.losses.terms.embedding_contrastive import EmbeddingContrastive
from histill.losses.terms.embedding_cosine import EmbeddingCosine
from histill.losses.terms.embedding_mse import EmbeddingMse
from histill.losses.terms.embedding_relational import EmbeddingRelational
from histill.losses.terms.embedding_smooth_l1 import EmbeddingSmoothL1
from histill.losses.terms.tokens import Tokens

pytestmark = pytest.mark.unit

Array = np.ndarray
WIDTHS = {"a": 3, "b": 4}
WEIGHTS = {"a": 1.0, "b": 3.0}
TILES, OWN, QUEUED, BETA, HEAT = 5, 3, 2, 0.7, 0.3


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def cosine(own: Array, other: Array) -> float:
    return 1 - float(unit(own) @ unit(other))


def huber(gap: float, beta: float) -> float:
    return gap**2 / (2 * beta) if abs(gap) <= beta else abs(gap) - beta / 2


def over_tiles(value: Callable[[Array, Array], float]) -> Callable[[Array, Array, Array], float]:
    """The mean over tiles of a function of the student's and the teacher's embedding."""
    return lambda own, others, queue: float(np.mean([value(o, t) for o, t in zip(own, others, strict=True)]))


def info_nce(own: Array, others: Array, queue: Array) -> float:
    keys = unit(np.concatenate([others, queue]))
    losses = []
    for tile, query in enumerate(unit(own)):
        scores = np.exp(keys @ query / HEAT)
        losses.append(-np.log(scores[tile] / scores.sum()))
    return float(np.mean(losses))


def relations(own: Array, others: Array, queue: Array) -> float:
    """Distances by their mean, and angles with twice the weight."""
    count = len(own)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    triples = [(i, j, k) for i, j in pairs for k in range(count) if k not in (i, j)]
    distances, angles = [], []
    for rows in (own, others):
        found = np.array([np.linalg.norm(rows[i] - rows[j]) for i, j in pairs])
        distances.append(found / found.mean())
        angles.append(np.array([unit(rows[i] - rows[j]) @ unit(rows[k] - rows[j]) for i, j, k in triples]))
    by_distance = np.mean([huber(gap, 1) for gap in distances[0] - distances[1]])
    by_angle = np.mean([huber(gap, 1) for gap in angles[0] - angles[1]]) if triples else 0.0
    return float(by_distance + 2 * by_angle)


OF_EMBEDDINGS: dict[str, tuple[Term, Callable[[Array, Array, Array], float]]] = {
    "cosine": (EmbeddingCosine(), over_tiles(cosine)),
    "mse": (EmbeddingMse(), over_tiles(lambda own, other: float(np.mean((own - other) ** 2)))),
    "smooth_l1": (
        EmbeddingSmoothL1(beta=BETA),
        over_tiles(lambda own, other: float(np.mean([huber(gap, BETA) for gap in own - other]))),
    ),
    "contrastive": (EmbeddingContrastive(temperature=HEAT, queue=QUEUED), info_nce),
    "relational": (EmbeddingRelational(), relations),
}


def drawn(rng: np.random.Generator, *shape: int) -> dict[str, Array]:
    return {name: rng.normal(0, 2, (*shape[:1], width, *shape[1:])) for name, width in WIDTHS.items()}


def tensors(arrays: dict[str, Array], *, learned: bool = False) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(each, requires_grad=learned) for name, each in arrays.items()}


def slopes(value: Callable[[], float], array: Array) -> Array:
    """Central differences of `value` with respect to `array`, which it reads."""
    found, step = np.zeros_like(array), 1e-5
    for place in np.ndindex(array.shape):
        kept = array[place]
        array[place] = kept + step
        above = value()
        array[place] = kept - step
        found[place] = (above - value()) / (2 * step)
        array[place] = kept
    return found


def check(term: Term, reference: Callable[[], float], learned: dict[str, Array], valid: Array, inputs: Any) -> None:
    """Value and gradients of `term` are those of `reference`; padded rows hold nan and get a gradient of zero."""
    tracked = tensors(learned, learned=True)
    got = term(inputs(tracked))
    assert got.item() == pytest.approx(reference(), rel=1e-6, abs=1e-12)
    got.backward()
    for name, array in learned.items():
        gradient = tracked[name].grad
        if gradient is None:
            continue
        assert (gradient[~torch.from_numpy(valid)] == 0).all()
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(gradient[valid], slopes(reference, array)[valid], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", OF_EMBEDDINGS)
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 10**6))
def test_terms_on_embeddings(name: str, seed: int) -> None:
    term, reference = OF_EMBEDDINGS[name]
    rng = np.random.default_rng(seed)
    teachers, queues = drawn(rng, TILES), drawn(rng, QUEUED)
    student = {**drawn(rng, TILES), "own": rng.normal(0, 2, (TILES, OWN))}
    valid = np.array([True, True, False, True, bool(rng.integers(2))])
    for rows in (*teachers.values(), *student.values()):
        rows[~valid] = np.nan

    def expected() -> float:
        def of(teacher: str) -> float:
            own = student["own" if name == "relational" else teacher]
            return reference(own[valid], teachers[teacher][valid], queues[teacher])

        return sum(weight * of(teacher) for teacher, weight in WEIGHTS.items()) / sum(WEIGHTS.values())

    def inputs(learned: dict[str, torch.Tensor]) -> LossInputs:
        return LossInputs(
            student=learned["own"],
            valid=torch.from_numpy(valid),
            embedding=learned["own"],
            embeddings=tensors(teachers),
            projected_embeddings={teacher: learned[teacher] for teacher in WIDTHS},
            embedding_weights=WEIGHTS,
            embedding_queues=tensors(queues),
        )

    check(term, expected, student, valid, inputs)


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_tokens(distance: Any) -> None:
    """Of teachers with 2 x 2 tokens for each place of the student's map, and with as many as it has."""
    rng = np.random.default_rng(3)
    student = drawn(rng, 3, 2, 2)
    teachers = {"a": rng.normal(0, 2, (3, 3, 4, 4)), "b": rng.normal(0, 2, (3, 4, 2, 2))}
    valid = np.array([True, False, True])
    for maps in (*student.values(), *teachers.values()):
        maps[~valid] = np.nan

    def expected() -> float:
        total = 0.0
        for name, weight in WEIGHTS.items():
            by = teachers[name].shape[-1] // 2
            common = teachers[name][valid].mean((0, 2, 3))  # what all tokens share says nothing of one
            found = []
            for tile in np.flatnonzero(valid):
                for y, x in np.ndindex(2, 2):
                    other = teachers[name][tile, :, by * y : by * (y + 1), by * x : by * (x + 1)].mean((1, 2)) - common
                    own = student[name][tile, :, y, x]
                    found.append(cosine(own, other) if distance == "cosine" else float(np.mean((own - other) ** 2)))
            total += weight * float(np.mean(found))
        return total / sum(WEIGHTS.values())

    def inputs(learned: dict[str, torch.Tensor]) -> LossInputs:
        return LossInputs(
            student=learned["a"],
            valid=torch.from_numpy(valid),
            embedding_weights=WEIGHTS,
            tokens=tensors(teachers),
            projected_tokens=learned,
        )

    check(Tokens(distance=distance), expected, student, valid, inputs)


def test_of_one_teacher_they_are_torch_s() -> None:
    own, others = (torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * 2 for seed in (0, 1))
    every = torch.ones(6, dtype=torch.bool)
    torch.testing.assert_close(squared_distance(own, others, every), F.mse_loss(own, others))
    torch.testing.assert_close(smooth_l1_distance(own, others, every, 0.5), F.smooth_l1_loss(own, others, beta=0.5))
    torch.testing.assert_close(cosine_distance(own, others, every), F.cosine_embedding_loss(own, others, torch.ones(6)))


@pytest.mark.parametrize(
    ("distance", "indifferent"),
    [
        (cosine_distance, True),
        (squared_distance, True),
        (lambda own, others, valid: smooth_l1_distance(own, others, valid, 1.0), False),
    ],
    ids=["cosine", "mse", "smooth_l1"],
)
def test_a_rotation_of_the_teacher_is_one_of_the_projection(distance: Any, indifferent: bool) -> None:
    """PHI-S's rotation (arXiv 2410.01680): with a learned linear projection only smooth L1 can tell it."""
    rng = np.random.default_rng(0)
    rotation = torch.from_numpy(np.linalg.qr(rng.normal(size=(4, 4)))[0])
    embedding, weight, bias = (torch.from_numpy(rng.normal(0, 2, shape)) for shape in ((7, 3), (3, 4), (4,)))
    spread = torch.tensor([9.0, 1.0, 0.3, 0.1], dtype=torch.float64)  # of the dimensions of the teacher's embeddings
    teacher = torch.from_numpy(rng.normal(size=(7, 4))) * spread
    every = torch.ones(7, dtype=torch.bool)
    plain = distance(embedding @ weight + bias, teacher, every)
    rotated = distance(embedding @ (weight @ rotation) + bias @ rotation, teacher @ rotation, every)
    assert (abs(float(plain - rotated)) < 1e-12) == indifferent
