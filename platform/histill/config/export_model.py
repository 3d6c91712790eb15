"""Configuration of `histill export`."""

from typing import Literal

from pydantic import Field

from histill.config.base import ModelUri, Strict, Uri
from histill.config.common import Split, Storage, Tracking


class ExportConfig(Strict):
    """A model, the formats to make of it, and tiles on which they must answer as it does."""

    model: ModelUri = Field(description="model folder, run folder, or models:/name@alias")
    tiles: Uri = Field(description="tile set of which some tiles are answered by the model and by each format")
    split: Split = Field("test", description="split that these are taken from")
    output: Uri = Field(
        description="folder to write the formats into, with the model, README.md, interface.json and SHA256SUMS"
    )
    formats: tuple[Literal["onnx", "pt2", "timm", "smp", "wsinfer"], ...] = Field(
        ("onnx",),
        min_length=1,
        description="what to make, e.g. [onnx, timm, wsinfer]; `promote` alone makes quantized ones, as it judges them",
    )
    max_difference: float = Field(
        0.01, ge=0, description="largest difference between the formats' logits and the model's"
    )
    license: str | None = Field(None, description="license of the weights, e.g. CC-BY-NC-4.0")
    signing_key: Uri | None = Field(
        None,
        description="local PEM file with the elliptic-curve private key (P-256, P-384, P-521) that signs the files; "
        "null: they are not signed",
    )
    storage: Storage = Storage()
    tracking: Tracking = Tracking()
