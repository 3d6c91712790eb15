"""Keys of judging an encoder by its embeddings."""

from typing import Literal

from pydantic import Field, field_validator

from histill.config.base import Strict, Uri
from histill.config.common import Split


class Centers(Strict):
    """Where each case or slide was stained or scanned, for the robustness index."""

    table: Uri = Field(description="a CSV with a line for each case or slide, or the index that was ingested")
    column: str = Field("center", description="its column of centers or scanners")
    by: Literal["case", "slide"] = Field("case", description="its column of what the tiles are of")


class Probe(Strict):
    """A linear probe of a model's embeddings, and the figures beside it."""

    train: Split = Field("train", description="split whose labels the probe learns")
    val: Split | None = Field(
        "val",
        description="split by which the probe's C is chosen; null, or one that lacks a class: folds of training cases",
    )
    neighbors: int = Field(20, ge=1, description="training tiles whose majority is the answer of nearest neighbors")
    shots: tuple[int, ...] = Field((1, 2, 4, 8), description="labeled cases for each class in few-shot figures")
    draws: int = Field(10, ge=2, description="how often these cases are drawn, each time by a seed of its own")
    centers: Centers | None = Field(None, description="the robustness index over centers or scanners; null: none")

    @field_validator("shots")
    @classmethod
    def _are_counts(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 1 for count in shots) or len(set(shots)) < len(shots):
            raise ValueError("shots are different numbers of cases, 1 or more; write [1, 2, 4, 8]")
        return shots
