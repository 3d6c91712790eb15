"""Configuration of `histill score`."""

from pydantic import Field

from histill.config.base import HtmlUri, ModelUri, PngUri, Strict, Uri
from histill.config.common import Split, Storage, Teacher, Tracking, Workers
from histill.config.encoder import EncoderFacts
from histill.config.engine import EngineOption
from histill.config.objects import Objects
from histill.config.probe import Probe


class HeldOut(Strict):
    """Held-out tiles and the reference to score against."""

    tiles: Uri = Field(description="folder of the tile set")
    split: Split = Field("test", description="split to score")
    reference: Teacher | None = Field(None, description="score agreement with this teacher; null: with the set's masks")
    probe: Probe | None = Field(
        None,
        description="score the embeddings of the model's encoder instead of its outputs; null: only for encoders, "
        "which have no other outputs",
    )
    objects: Objects | None = Field(
        None,
        description="score a segmenter's objects too, such as nuclei: panoptic quality, aggregated Jaccard index and "
        "F1; {}: with the defaults, null: only its pixels",
    )
    by: tuple[str, ...] = Field(
        (),
        description="columns that the tile set keeps of its index (keep_columns), such as [center, scanner]: score "
        "the tiles of each value beside the others, too",
    )
    batch_size: int = Field(16, ge=1, description="tiles per batch")
    max_corrupt: int = Field(0, ge=0, description="number of undecodable tiles to leave out before the job fails")


class ScoreConfig(Strict):
    """A model folder and the tiles to score it on."""

    model: ModelUri = Field(
        description="model folder (model.safetensors + model.json), a run's folder, models:/name@alias, or an encoder: "
        "a folder with config.json and model.safetensors, as the Hugging Face hub has timm models"
    )
    encoder: EncoderFacts = EncoderFacts()
    held_out: HeldOut
    bootstrap_samples: int = Field(1000, ge=0, description="resamples of the cases for the 95 % intervals; 0: none")
    robustness_tiles: int = Field(
        256, ge=0, description="tiles to score again with stain jitter, blur, JPEG and half the resolution; 0: none"
    )
    speed: bool = Field(True, description="measure the model's speed on this machine, which takes some seconds")
    report: HtmlUri | None = Field(None, description="self-contained .html file with the whole score; null: none")
    picture: PngUri | None = Field(None, description=".png file of tiles with the model's predictions; null: none")
    picture_rows: int = Field(6, ge=1, le=32, description="number of tiles in the picture")
    engine: EngineOption = "auto"
    workers: Workers | None = Field(
        None, description="score on the cluster, in tasks of this size; null: in the job's own process"
    )
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
