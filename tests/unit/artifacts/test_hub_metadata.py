"""The front matter of a README: the Hugging Face hub's own library reads it."""

import math
from typing import Any

import pytest
from huggingface_hub import ModelCard as HubCard

from histill.artifacts.hub_metadata import ScoredTiles, write_front_matter
from histill.artifacts.model_folder import ModelCard

pytestmark = pytest.mark.unit

CARD = ModelCard(
    kind="classification", encoder="csat", decoder_channels=(), classes=("stroma", "tumour: 1"), mean=(0.7, 0.5, 0.6),
    std=(0.2, 0.25, 0.15), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="tiles", train_cases=(), histill="0",
)  # fmt: skip
SCORED = ScoredTiles("120 held-out tiles of 6 cases", "test", "ab" * 32)


def read(license: str | None = None, card: ModelCard = CARD, figures: dict[str, float] | None = None) -> HubCard:
    figures = {"balanced_accuracy": 0.51234567, "auroc": math.nan} if figures is None else figures
    return HubCard(write_front_matter(card, "nuclei-student", license, ["onnx", "timm"], figures, SCORED) + "# A model")


def test_the_hub_reads_tags_and_figures_with_their_tiles() -> None:
    card = read()
    assert card.text.strip() == "# A model"
    data: Any = card.data
    assert (data.model_name, data.pipeline_tag, data.library_name) == (
        "nuclei-student", "image-classification", "histill"
    )  # fmt: skip
    assert {"csat", "onnx", "timm"} <= set(data.tags)
    assert data.metrics == ["balanced_accuracy"]
    (result,) = data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == (
        "image-classification", "balanced_accuracy", 0.512346,
    )  # fmt: skip
    assert (result.dataset_name, result.dataset_split, result.dataset_revision) == (SCORED.name, "test", SCORED.digest)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, {}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC BY-NC 4.0", {"license": "cc-by-nc-4.0"}),
        ("Our own: terms", {"license": "other", "license_name": "our-own:-terms"}),
    ],
)
def test_a_license_is_the_hubs_or_other(stated: str | None, expected: dict[str, str]) -> None:
    data = read(stated).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected


@pytest.mark.parametrize(
    ("kind", "task"), [("segmentation", "image-segmentation"), ("encoder", "image-feature-extraction")]
)
def test_each_kind_of_model_has_a_task(kind: str, task: str) -> None:
    data: Any = read(card=CARD.model_copy(update={"kind": kind})).data
    assert data.pipeline_tag == data.eval_results[0].task_type == task


def test_without_figures_there_are_none() -> None:
    assert "model-index" not in read(figures={}).data.to_dict()
