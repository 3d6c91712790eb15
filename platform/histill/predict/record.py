"""The header of finished predictions."""

from dataclasses import dataclass
from typing import ClassVar

from histill.artifacts.model_folder import ModelCard
from histill.storage.records import Record

HEADER_NAME = "predictions.json"


@dataclass(frozen=True)
class Predicted:
    """The result of finished predictions."""

    predictions: str  # folder
    tiles: int
    corrupt: int
    classes: dict[str, int]  # tiles per class
    slides: str  # CSV of each slide's tiles and class shares
    skipped: tuple[str, ...]  # one sentence per slide without tiles
    heatmaps: int  # slides with a heatmap
    seconds: float  # spent on the tiles
    reused: bool
    features: int = 0  # slides that have a file of embeddings
    detections: int = 0  # slides that have a file of objects
    overlays: int = 0  # slides that have an overlay of probabilities
    engine: str = ""  # what ran the model; empty: every file was there already, or an earlier histill made them


class PredictionsHeader(Record):
    """The model and tiles that the predictions are for; written last, so that it marks them as complete."""

    noun: ClassVar[str] = "a header of predictions"
    remedy: ClassVar[str] = "remove it and run the same command again"

    model: str
    tiles: str
    classes: tuple[str, ...]
    card: ModelCard
    found: Predicted
    shard_bytes: int | None = None
