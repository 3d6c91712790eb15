"""The header of finished predictions."""

from dataclasses import dataclass
from typing import ClassVar

from histill.artifacts.model_folder import ModelCard
from histill.storage.records import Record

HEADER_NAME = "predictions.json"


@dataclass(frozen=True)
class Predicted:
    """Finished predictions."""

    predictions: str  # folder
    tiles: int
    corrupt: int
    classes: dict[str, int]  # tiles of each
    slides: str  # a CSV of each slide's tiles and shares
    skipped: tuple[str, ...]  # a sentence for each of the slides that gave no tile
    heatmaps: int  # slides that have one
    seconds: float  # that the tiles took
    reused: bool


class PredictionsHeader(Record):
    """By what model and of which tiles the predictions are; written last, so those without it are not finished."""

    noun: ClassVar[str] = "a header of predictions"
    remedy: ClassVar[str] = "remove it and give the same command again"

    model: str
    tiles: str
    classes: tuple[str, ...]
    card: ModelCard
    found: Predicted
    shard_bytes: int | None = None
