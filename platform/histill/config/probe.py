"""Options for scoring an encoder by its embeddings."""

from typing import Literal

from pydantic import Field, field_validator

from histill.config.base import Strict, Uri
from histill.config.common import Split


class Centers(Strict):
    """The center or scanner of each case or slide, for the robustness index."""

    table: Uri = Field(description="CSV with a line per case or slide; the ingested index will do")
    column: str = Field("center", description="column of the centers or scanners")
    by: Literal["case", "slide"] = Field("case", description="column of the cases or slides")


class Probe(Strict):
    """A linear probe of a model's embeddings, and further figures of them."""

    train: Split = Field("train", description="split that the probe is fitted to")
    val: Split | None = Field(
        None, description="split on which the probe's C is chosen; null: folds of the training cases, which are more"
    )
    neighbors: int = Field(20, ge=1, description="number of nearest training tiles that vote for a class")
    shots: tuple[int, ...] = Field(
        (1, 2, 4, 8), description="numbers of labeled cases per class for few-shot classification"
    )
    draws: int = Field(10, ge=2, description="number of random draws of these cases")
    centers: Centers | None = Field(None, description="compute the robustness index over these centers; null: no")

    @field_validator("shots")
    @classmethod
    def _are_counts(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if any(count < 1 for count in shots) or len(set(shots)) < len(shots):
            raise ValueError("shots are different numbers of cases, 1 or more; write [1, 2, 4, 8]")
        return shots
