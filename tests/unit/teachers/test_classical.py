"""The classical teacher: finds hematoxylin, finds nothing where there is none, and treats each tile independently."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histill.teachers.classical import ClassicalTeacher

pytestmark = pytest.mark.unit

Draw = Callable[[int, int], tuple[np.ndarray, np.ndarray]]
NUINSSEG = Path(__file__).parents[4] / "shared" / "data" / "nuinsseg"


def batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * np.logical_and(first, second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tile_px", [64, 160])
def test_hematoxylin_discs_are_found(draw_tile: Draw, seed: int, tile_px: int) -> None:
    image, mask = draw_tile(seed, tile_px)
    logits = ClassicalTeacher(0.5).respond(batch(image))
    assert logits.dtype == torch.float32
    assert logits.shape == (1, 2, tile_px, tile_px)
    assert dice(logits.argmax(1)[0].numpy() > 0, mask > 0) > 0.95


def ground(color: tuple[int, int, int], noise: float) -> np.ndarray:
    random = np.random.default_rng(0)
    return (np.array(color) + random.normal(0, noise, (96, 96, 3))).clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize("color", [(255, 255, 255), (243, 241, 244), (231, 160, 196)], ids=["white", "glass", "pink"])
def test_a_tile_without_nuclei_gets_none(color: tuple[int, int, int], noise: float) -> None:
    logits = ClassicalTeacher(0.5).respond(batch(ground(color, noise)))
    assert logits.isfinite().all()
    assert logits.argmax(1).sum() == 0


def test_specks_smaller_than_a_nucleus_are_background(draw_tile: Draw) -> None:
    image, mask = draw_tile(0, 64)
    coarse = ClassicalTeacher(0.05).respond(batch(image))  # the same discs would be a tenth as wide
    assert mask.any()
    assert coarse.argmax(1).sum() == 0


def test_a_tile_is_answered_the_same_in_any_batch(draw_tile: Draw) -> None:
    teacher = ClassicalTeacher(0.5)
    images = [draw_tile(seed, 64)[0] for seed in range(3)]
    together = teacher.respond(batch(*images, np.full((64, 64, 3), 255, np.uint8)))
    for index, image in enumerate(images):
        assert torch.equal(together[index], teacher.respond(batch(image))[0])


def test_logits_are_of_two_classes_and_bounded(draw_tile: Draw) -> None:
    logits = ClassicalTeacher(0.5).respond(batch(draw_tile(0, 64)[0]))
    assert (logits[:, 0] == 0).all()
    assert logits.abs().max() <= 8


def test_the_digest_is_that_of_the_answers() -> None:
    assert ClassicalTeacher(0.5).digest == ClassicalTeacher(0.5).digest
    assert len({ClassicalTeacher(mpp).digest for mpp in (0.25, 0.5, None)}) == 3


@pytest.mark.skipif(not (NUINSSEG / "index.csv").exists(), reason="the NuInsSeg images are not here")
def test_it_agrees_with_experts_on_real_tissue() -> None:
    with open(NUINSSEG / "index.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    hit = total = 0
    for row in rows[:: len(rows) // 20][:20]:
        image = np.asarray(Image.open(NUINSSEG / row["image"]).convert("RGB"))
        mask = np.asarray(Image.open(NUINSSEG / row["mask"])) > 0
        found = ClassicalTeacher(0.25).respond(batch(image)).argmax(1)[0].numpy() > 0
        hit += int(np.logical_and(found, mask).sum())
        total += int(found.sum() + mask.sum())
    assert 2 * hit / total > 0.5
