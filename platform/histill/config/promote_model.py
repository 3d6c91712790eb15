"""Configuration of `histill promote`."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from histill.config.base import ModelUri, ServerUri, Strict, Uri
from histill.config.common import Name, Storage, Tracking, Workers
from histill.config.score_model import HeldOut
from histill.licenses import License

FormatName = Literal["onnx", "pt2", "onnx_int8", "openvino_int8", "timm", "smp", "wsinfer"]
"""The formats that a model can be exported to, each a module of `histill.artifacts.formats`."""


class LicenseGate(Strict):
    """What the licenses of all that taught a candidate must allow."""

    commercial: bool = Field(
        False,
        description="refuse a candidate if the license of anything that taught it forbids commercial use of such "
        "models, or is not on record",
    )
    allow: tuple[str, ...] | None = Field(
        None, min_length=1, description="the only licenses that may have taught it, e.g. [MIT, Apache-2.0]; null: any"
    )
    stated: dict[str, License] = Field(
        {},
        description="license that you know or hold of a teacher or of weights, by the name in the table of gates, e.g. "
        "{onnx teacher nuclei.onnx: MIT}; it replaces the one on record",
    )


class Gates(Strict):
    """Conditions that a candidate must meet before it becomes champion."""

    floors: dict[str, float] = Field({}, description="least value of a figure, e.g. {dice: 0.6}")
    ceilings: dict[str, float] = Field(
        {}, description="largest value of a figure or cost (gmacs, parameters), e.g. {calibration_error: 0.1, gmacs: 6}"
    )
    max_regression: float = Field(
        0.02,
        ge=0,
        le=1,
        description="margin by which the main figure (dice, balanced_accuracy) may lie below the champion's, judged by "
        "the lower end of the paired 95 % interval over cases; 1: not compared",
    )
    min_cases: int = Field(
        6,
        ge=6,
        description="least number of held-out cases for replacing a champion; below 6 there is no 95 % interval",
    )
    max_cost_ratio: float | None = Field(
        0.9,
        gt=0,
        le=1,
        description="a candidate that is not surely better than the champion must cost at most this fraction of its "
        "GMACs; null: it need be neither better nor cheaper",
    )
    max_difference: float = Field(
        0.01, ge=0, description="largest difference between the exported formats' logits and the model's on real tiles"
    )
    max_quantization_loss: float = Field(
        0.02,
        ge=0,
        le=1,
        description="margin by which the main figure of a quantized format may lie below the float model's, judged by "
        "the lower end of the paired 95 % interval over cases; one that loses more is refused, and the others are "
        "promoted without it; 1: any loss",
    )
    max_group_loss: float | None = Field(
        None,
        ge=0,
        le=1,
        description="margin by which the main figure of a group of held_out.by, such as the tiles of one scanner, may "
        "lie below that of all others; refused is what is surely below it by resampled cases, a wrong refusal in 1 of "
        "20 columns without any difference; null: groups are only shown",
    )
    beat_constant: bool = Field(
        True, description="whether the main figure must exceed that of the best constant prediction"
    )
    refuse_unknown: bool = Field(
        False,
        description="refuse a candidate if it is unknown whether its encoder or teacher was trained on the held-out "
        "tiles; false: warn",
    )
    license: LicenseGate = LicenseGate()
    bootstrap_samples: int = Field(1000, ge=100, description="resamples of the cases for the intervals")


class PromoteConfig(Strict):
    """A candidate, the registered model's name and the gates; or a rollback to the former champion."""

    model: ModelUri | None = Field(None, description="the candidate's model folder, run folder, or models:/name/3")
    registered_name: Name = Field(description="name in the model registry")
    held_out: HeldOut | None = None
    formats: tuple[FormatName, ...] = Field(
        ("onnx",),
        min_length=1,
        description="what a version holds for other programs, beside model.safetensors, e.g. [onnx, onnx_int8]: "
        "int8 is quantized, and scored against the float model as a candidate is; timm (classifiers, encoders) and smp "
        "(segmenters) are folders for these libraries, wsinfer (classifiers) one for WSInfer and QuPath; wsinfer and "
        "pt2 (for torch.export.load) have room for pickled objects",
    )
    calibration_tiles: int = Field(
        128, ge=8, description="training tiles, spread over the tile set, that quantized formats are calibrated on"
    )
    gates: Gates = Gates()
    dry_run: bool = Field(False, description="score and judge, but change nothing")
    rollback: bool = Field(False, description="make the former champion the champion again; needs no model")
    rollback_from: int | None = Field(
        None, ge=1, description="the version to roll back from, so that repeating the command is safe; null: any"
    )
    copy_to: ServerUri | None = Field(
        None, description="tracking server to whose registry the champion is copied, such as production; null: none"
    )
    license: str | None = Field(None, description="license of the weights, for the model card, e.g. CC-BY-NC-4.0")
    signing_key: Uri | None = Field(
        None,
        description="local PEM file with the elliptic-curve private key (P-256, P-384, P-521) that signs the version; "
        "null: it is not signed",
    )
    picture_rows: int = Field(6, ge=1, le=32, description="number of tiles in the picture")
    workers: Workers | None = Field(
        None, description="score the candidate on the cluster, in tasks of this size; null: in the job's own process"
    )
    storage: Storage = Storage()
    tracking: Tracking = Tracking()

    @field_validator("formats")
    @classmethod
    def _each_once(cls, formats: tuple[FormatName, ...]) -> tuple[FormatName, ...]:
        return tuple(dict.fromkeys(formats))

    @field_validator("license", mode="before")
    @classmethod
    def _of_the_weights(cls, license: Any) -> Any:
        if isinstance(license, Mapping):
            raise ValueError(
                "license is that of the weights, a text; what the licenses of its teachers must allow is said by "
                "gates.license.commercial and gates.license.allow"
            )
        return license

    @model_validator(mode="after")
    def _one_way(self) -> "PromoteConfig":
        if self.rollback and (self.model is not None or self.dry_run):
            raise ValueError("rollback names no model and is no dry_run; leave them out")
        if self.rollback_from is not None and not self.rollback:
            raise ValueError("rollback_from is of a rollback; set rollback=true, or leave it out")
        if not self.rollback and (self.model is None or self.held_out is None):
            raise ValueError("a candidate needs model=<folder> and held_out.tiles=<folder>; or set rollback=true")
        if self.gates.max_group_loss is not None and self.held_out is not None and not self.held_out.by:
            raise ValueError(
                "gates.max_group_loss is of groups of tiles; name their columns as held_out.by, or leave it out"
            )
        return self
