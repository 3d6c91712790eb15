"""Memory of batches is reused, but never while anything still refers to it."""

import gc

import numpy as np
import pytest
import torch

from histill.stream.buffers import Buffers

pytestmark = pytest.mark.unit

SHAPE = (2, 3, 4)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_when_nobody_holds_it() -> None:
    buffers = Buffers()
    lent = buffers.lend(SHAPE)
    assert (lent.shape, lent.dtype) == (SHAPE, np.uint8)
    first = address(lent)
    lent[:] = 7
    del lent
    again = buffers.lend(SHAPE)
    assert address(again) == first
    assert (again == 7).all()  # contents are those of the last use


def test_memory_in_use_is_not_lent_again() -> None:
    buffers = Buffers()
    held = [buffers.lend(SHAPE) for _ in range(5)]
    assert len({address(array) for array in held}) == 5
    assert not any(np.shares_memory(held[0], other) for other in held[1:])


def test_other_shapes_have_memory_of_their_own() -> None:
    buffers = Buffers()
    first = address(buffers.lend(SHAPE))
    other = buffers.lend((4, 3, 2))
    assert other.shape == (4, 3, 2)
    assert address(other) != first


@pytest.mark.parametrize(
    "seen",
    [
        torch.from_numpy,
        lambda lent: torch.from_numpy(lent).permute(2, 0, 1),
        lambda lent: torch.from_numpy(lent)[1:],
        lambda lent: torch.from_numpy(lent)[0].numpy(),
        lambda lent: torch.from_numpy(lent).detach().view(-1),
    ],
    ids=["tensor", "permuted", "part", "array of a tensor", "detached"],
)
def test_a_tensor_keeps_the_memory_alive(seen: object) -> None:
    buffers = Buffers()
    lent = buffers.lend(SHAPE)
    lent[:] = 5
    tensor = seen(lent)  # type: ignore[operator]
    first = address(lent)
    del lent
    gc.collect()
    others = [buffers.lend(SHAPE) for _ in range(3)]
    for other in others:
        other[:] = 9
    assert first not in {address(other) for other in others}
    assert bool((tensor == 5).all())
    del tensor, others, other
    gc.collect()
    assert first in {address(array) for array in [buffers.lend(SHAPE) for _ in range(4)]}


def test_memory_outlives_its_lender() -> None:
    buffers = Buffers()
    lent = buffers.lend(SHAPE)
    lent[:] = 3
    del buffers
    gc.collect()
    assert (lent == 3).all()
