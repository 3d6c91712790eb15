"""Configuration of `score_model.py`."""

from pydantic import Field

from histill.config.base import ModelUri, Strict, Uri
from histill.config.common import Split, Storage, Teacher, Tracking, Workers


class HeldOut(Strict):
    """Tiles that no training has seen, and what they are judged against."""

    tiles: Uri = Field(description="folder of the tile set")
    split: Split = Field("test", description="split to score")
    reference: Teacher | None = Field(None, description="judge agreement with this teacher; null: the tile set's masks")
    batch_size: int = Field(16, ge=1, description="tiles at once")
    max_corrupt: int = Field(0, ge=0, description="how many undecodable tiles are left out before the job fails")


class ScoreConfig(Strict):
    """A model folder and the tiles to score it on."""

    model: ModelUri = Field(
        description="model folder (model.safetensors + model.json), a run's folder, or models:/name@alias"
    )
    held_out: HeldOut
    bootstrap_samples: int = Field(1000, ge=0, description="redrawn sets of cases behind the 95 % intervals; 0: none")
    robustness_tiles: int = Field(
        256, ge=0, description="tiles that are scored again in other stains, blurred, compressed, halved; 0: none"
    )
    speed: bool = Field(True, description="measure how fast the model is on this machine, which takes some seconds")
    report: Uri | None = Field(None, description="an .html file for the whole score, which needs no server; null: none")
    picture: Uri | None = Field(None, description="PNG of tiles and what the model says of them; null: none")
    picture_rows: int = Field(6, ge=1, le=32, description="tiles of the picture")
    workers: Workers | None = Field(
        None, description="score on the cluster, in tasks of this size; null: in the job's own process"
    )
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
