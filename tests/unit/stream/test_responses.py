"""Cached responses: the precision of 8-bit logits, and that softmax ignores the shift by class 0."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histill.outputs import OutputSpec
from histill.stream.decode import CorruptTile
from histill.stream.responses import (
    LIMIT,
    STEP,
    ZERO,
    decode_levels,
    decode_map,
    encode_logits,
    encode_map,
    levels_to_logits,
    response_columns,
    response_schema,
)

pytestmark = pytest.mark.unit

logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.just(4), st.just(4)),
    elements=st.floats(-3 * LIMIT, 3 * LIMIT, width=32),
)


@given(logits)
def test_a_stored_logit_is_wrong_by_half_a_step_at_most(values: np.ndarray) -> None:
    levels = decode_levels(encode_logits(values), values.shape[0], values.shape[1])
    assert (levels.shape, levels.dtype) == (values.shape, np.uint8)
    read = levels_to_logits(torch.from_numpy(levels.copy()))
    assert read.dtype == torch.float32
    expected = np.clip(values.astype(np.float64), -LIMIT, LIMIT)
    assert np.abs(read.numpy() - expected).max() <= STEP / 2 + 1e-5


def test_limits_zero_and_sign_are_exact() -> None:
    values = np.array([[[-99.0, -LIMIT], [0.0, LIMIT]]], np.float32)
    levels = torch.from_numpy(decode_levels(encode_logits(values), 1, 2).copy())
    assert levels_to_logits(levels).ravel().tolist() == pytest.approx([-LIMIT, -LIMIT, 0, LIMIT])
    assert levels_to_logits(torch.full((2, 1, 3, 3), ZERO, dtype=torch.uint8)).abs().max() == 0


def test_bytes_and_a_view_of_them_are_decoded_alike() -> None:
    data = encode_logits(np.random.default_rng(0).normal(0, 3, (2, 8, 8)).astype(np.float32))
    assert np.array_equal(decode_levels(memoryview(data), 2, 8), decode_levels(data, 2, 8))


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"no response", lambda data: b""])
def test_damaged_bytes_are_a_corrupt_tile(spoil: object) -> None:
    data = encode_logits(np.random.default_rng(0).normal(size=(1, 8, 8)).astype(np.float32))
    with pytest.raises(CorruptTile, match="response"):
        decode_levels(spoil(data), 1, 8)  # type: ignore[operator]


def test_a_response_of_another_size_is_a_corrupt_tile() -> None:
    with pytest.raises(CorruptTile, match="response"):
        decode_levels(encode_logits(np.zeros((1, 8, 8), np.float32)), 1, 16)


def test_packed_logits_leave_the_softmax_as_it_was() -> None:
    teacher = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    outputs = OutputSpec("segmentation", tuple("abcd"))
    packed = outputs.pack(teacher)
    assert packed.shape == (2, outputs.packed_channels, 3, 3) == (2, 3, 3, 3)
    torch.testing.assert_close(outputs.unpack(packed).softmax(1), teacher.softmax(1))
    torch.testing.assert_close(outputs.pack(outputs.unpack(packed)), packed)


def test_each_view_has_a_column() -> None:
    assert response_columns(1) == ("response",)
    assert response_columns(3) == ("response_0", "response_1", "response_2")
    assert response_schema(2).names == ["tile_id", "response_0", "response_1"]


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e4]))
def test_a_feature_map_is_off_by_half_a_step_at_most(seed: int, scale: float) -> None:
    feature_map = np.random.default_rng(seed).normal(0, scale, (5, 3, 2)).astype(np.float32)
    decoded = decode_map(encode_map(feature_map), (5, 3, 2))
    assert decoded.dtype == np.float32
    assert np.abs(decoded - feature_map).max() <= np.abs(feature_map).max() / 127 * 0.5001 + 1e-12


def test_a_damaged_feature_map_is_corrupt() -> None:
    with pytest.raises(CorruptTile, match="its feature map"):
        decode_map(encode_map(np.ones((2, 2, 2), np.float32))[:-3], (2, 2, 2))
