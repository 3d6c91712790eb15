"""Color and stain jitter against references in float64, written from the equations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histill.config.augment import Augment
from histill.stream.color import DRAWS, color_matrix, jitter_colors, stain_matrix

pytestmark = pytest.mark.unit

HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
MIDDLE = np.full(DRAWS, 0.5)  # draws that change nothing

signed = hnp.arrays(np.float64, 6, elements=st.floats(-1, 1))
images = hnp.arrays(np.uint8, (5, 7, 3))


def stained(image: np.ndarray, numbers: np.ndarray, stain: float) -> np.ndarray:
    """The levels (float64, not rounded) of `image` with each stain's density c changed to (1 + a) c + b."""
    basis = np.stack([stain / np.sqrt(stain @ stain) for stain in HED])
    density = -np.log10(np.where(image == 0, 0.5, image).astype(np.float64) / 255)
    concentrations = density @ np.linalg.pinv(basis)
    changed = (1 + stain * numbers[:3]) * concentrations + stain * numbers[3:]
    return np.clip(255 * 10 ** -(changed @ basis), 0, 255)


def colored(image: np.ndarray, numbers: np.ndarray, augment: Augment) -> np.ndarray:
    """The levels (float64, not rounded): saturation about the luma, contrast about 127.5, brightness."""
    levels = image.astype(np.float64)
    luma = (levels @ [0.299, 0.587, 0.114])[..., None]
    levels = luma + (1 + augment.saturation * numbers[2]) * (levels - luma)
    levels = 127.5 + (1 + augment.contrast * numbers[1]) * (levels - 127.5)
    return np.clip((1 + augment.brightness * numbers[0]) * levels, 0, 255)


def draws_of(stains: Any = (0,) * 6, colors: Any = (0,) * 3) -> np.ndarray:
    """The draws that map to these numbers in -1..1."""
    return (np.concatenate([stains, colors]) + 1) / 2


@given(images)
def test_draws_in_the_middle_change_nothing(image: np.ndarray) -> None:
    colors = Augment(brightness=0.5, contrast=0.5, saturation=0.5)
    assert np.array_equal(jitter_colors(image, MIDDLE, colors), image)
    back = jitter_colors(image, MIDDLE, Augment(stain=0.5))
    assert np.abs(back.astype(int) - image).max() <= 1


@given(images, hnp.arrays(np.float64, DRAWS, elements=st.floats(0, 1, exclude_max=True)))
def test_no_strength_no_change(image: np.ndarray, draws: np.ndarray) -> None:
    before = image.copy()
    assert np.array_equal(jitter_colors(image, draws, Augment()), before)


@given(signed, st.floats(0, 0.99), hnp.arrays(np.float64, (4, 3), elements=st.floats(0, 3)))
def test_the_stain_matrix_deconvolves_scales_shifts_and_recomposes(
    numbers: np.ndarray, stain: float, density: np.ndarray
) -> None:
    matrix = stain_matrix(numbers, stain)
    assert matrix.shape == (3, 4)
    assert matrix.dtype == np.float32
    basis = HED / np.linalg.norm(HED, axis=1, keepdims=True)
    expected = ((1 + stain * numbers[:3]) * (density @ np.linalg.pinv(basis)) + stain * numbers[3:]) @ basis
    got = density @ matrix[:, :3].astype(np.float64).T + matrix[:, 3]
    assert np.abs(got - expected).max() < 1e-4  # the basis is ill-conditioned, the matrix float32


@settings(max_examples=60)
@given(images, signed, st.floats(0, 0.3))
def test_stained_pixels_are_those_of_the_equation(image: np.ndarray, numbers: np.ndarray, stain: float) -> None:
    augment = Augment(stain=stain)
    before = image.copy()
    got = jitter_colors(image, draws_of(stains=numbers), augment)
    assert got.dtype == np.uint8
    expected = image if stain == 0 else stained(image, numbers, stain)
    assert np.abs(got - expected).max() < 0.6
    assert np.array_equal(image, before)  # the teacher's view may lie in the same memory


strengths = st.floats(0, 0.9)


@settings(max_examples=60)
@given(images, hnp.arrays(np.float64, 3, elements=st.floats(-1, 1)), strengths, strengths, strengths)
def test_colored_pixels_are_those_of_the_equation(
    image: np.ndarray, numbers: np.ndarray, brightness: float, contrast: float, saturation: float
) -> None:
    augment = Augment(brightness=brightness, contrast=contrast, saturation=saturation)
    levels = np.append(image.reshape(-1, 3).astype(np.float64), np.ones((35, 1)), axis=1)
    matrix = color_matrix(numbers, augment)
    assert (matrix.shape, matrix.dtype) == ((3, 4), np.float32)
    expected = colored(image, numbers, augment)
    assert np.abs(np.clip(levels @ matrix.T.astype(np.float64), 0, 255) - expected.reshape(-1, 3)).max() < 1e-3
    if augment.colors:
        assert np.abs(jitter_colors(image, draws_of(colors=numbers), augment) - expected).max() < 1.1


@given(hnp.arrays(np.float64, 3, elements=st.floats(-1, 1)), st.floats(0, 0.99))
def test_white_stays_white_when_stains_are_only_scaled(scales: np.ndarray, stain: float) -> None:
    glass = np.full((3, 3, 3), 255, np.uint8)
    assert (jitter_colors(glass, draws_of(stains=[*scales, 0, 0, 0]), Augment(stain=stain)) == 255).all()


def test_gray_stays_gray_under_saturation_and_mid_gray_under_contrast() -> None:
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    for number in (-1, 1):
        saturated = jitter_colors(gray, draws_of(colors=[0, 0, number]), Augment(saturation=0.8))
        assert np.abs(saturated.astype(int) - gray).max() <= 1
        contrasted = jitter_colors(gray[127:129], draws_of(colors=[0, number, 0]), Augment(contrast=0.8))
        assert np.abs(contrasted.astype(int) - gray[127:129]).max() <= 1


def test_stain_comes_before_color() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    draws, both = random.random(DRAWS), Augment(stain=0.1, brightness=0.2, contrast=0.2, saturation=0.2)
    first = jitter_colors(image, draws, both.model_copy(update={"brightness": 0, "contrast": 0, "saturation": 0}))
    assert np.array_equal(
        jitter_colors(image, draws, both), jitter_colors(first, draws, both.model_copy(update={"stain": 0.0}))
    )
