"""Losses compared with torchdistill's independent implementation of the same papers."""

import pytest
import torch
from torch import Tensor

from histill.losses.logits import cross_entropy, kl_divergence
from histill.losses.relational import angle_relation, distance_relation

pytestmark = pytest.mark.unit
mid_level = pytest.importorskip("torchdistill.losses.mid_level", reason="torchdistill is not installed")

B = 7


def outputs(seed: int, width: int) -> Tensor:
    return torch.randn(B, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def as_recorded(values: Tensor) -> dict[str, dict[str, Tensor]]:
    """The record that torchdistill's hooks make of a module named `it`."""
    return {"it": {"output": values}}


def test_divergence_beside_labels() -> None:
    """alpha CE + (1 - alpha) T^2 KL (Hinton et al., arXiv 1503.02531)."""
    student, teacher, labels = outputs(0, 5), outputs(1, 5), torch.arange(B) % 5
    theirs = mid_level.KDLoss("it", "output", "it", "output", temperature=4.0, alpha=0.3)
    every = torch.ones(B, dtype=torch.bool)
    ours = 0.3 * cross_entropy(student, labels, every) + 0.7 * kl_divergence(student, teacher, every, 4.0)
    torch.testing.assert_close(ours, theirs(as_recorded(student), as_recorded(teacher), labels))


@pytest.mark.parametrize(
    ("loss", "factors", "alike"),
    [(distance_relation, (1.0, 0.0), 1 / B), (angle_relation, (0.0, 1.0), 1 - (B - 1) * (B - 2) / B**2)],
)
def test_relations_between_tiles(loss, factors: tuple[float, float], alike: float) -> None:
    """Park et al., arXiv 1904.05068.

    Theirs also averages over pairs and triples with a repeated tile, a share of `alike`, which always add 0.
    """
    student, teacher = outputs(2, 4), outputs(3, 6)
    theirs = mid_level.RKDLoss("it", "it", *factors, reduction="mean")
    ours = loss(student, teacher, torch.ones(B, dtype=torch.bool))
    torch.testing.assert_close(ours * (1 - alike), theirs(as_recorded(student), as_recorded(teacher)))
