"""The front matter of a model's README, by which the Hugging Face hub files, finds and compares models.

https://huggingface.co/docs/hub/model-cards describes its keys.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from histill.artifacts.model_folder import ModelCard
from histill.licenses import allows_commercial_use, plain_name

_TASKS = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "encoder": "image-feature-extraction",
}


@dataclass(frozen=True)
class ScoredTiles:
    """What a model was scored on."""

    name: str  # in words
    split: str
    digest: str  # of the tile set


def write_front_matter(
    card: ModelCard,
    name: str,
    license: str | None,
    formats: Sequence[str],
    figures: Mapping[str, float],
    scored: ScoredTiles,
) -> str:
    """The YAML between two lines of dashes: the license, tags, and the figures with the tiles that they are of.

    A license that the hub has no identifier for is named beside `other`; figures that are not finite are left out.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task, identifier = _TASKS[card.kind], _identify_license(license)
    results = [
        EvalResult(
            task_type=task, dataset_type="tiles", dataset_name=scored.name, dataset_split=scored.split,
            dataset_revision=scored.digest, metric_type=metric, metric_value=round(value, 6),
        )
        for metric, value in figures.items()
        if math.isfinite(value)
    ]  # fmt: skip
    data = ModelCardData(
        license=identifier,
        license_name=plain_name(license) if license is not None and identifier == "other" else None,
        library_name="histill",
        pipeline_tag=task,
        tags=["histopathology", "knowledge-distillation", card.encoder, *formats],
        metrics=[result.metric_type for result in results] or None,
        model_name=name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _identify_license(license: str | None) -> str | None:
    """The hub's identifier of a license: that of SPDX in small letters, or `other`."""
    if license is None:
        return None
    return "other" if allows_commercial_use(license) is None else plain_name(license)
