"""Configuration of `finetune_student.py`."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from histill.config.base import ModelUri
from histill.config.runs import Network, RunConfig, Sources, SupervisedLoss, drop_dice_for_tiles

_Sections = Mapping[str, Mapping[str, Any]]
_PRETRAINED: _Sections = {
    "data": {"balance": "label"},
    "optimizer": {"epochs": 6, "steps": 300, "lr": 2e-5, "ema": 0.9},
    "validation": {"every_steps": 10, "keep": "best", "patience": 4},
}
"""Defaults of classifying whole tiles (docs/results/finetuning.md)."""
_FROM_SCRATCH: _Sections = {
    "data": {"balance": "label"},
    "optimizer": {"epochs": 200, "steps": 600, "lr": 1e-3, "ema": 0.9},
    "validation": {"every_steps": 25, "keep": "best", "patience": 10},
}


class FinetuneConfig(RunConfig):
    """A pretrained encoder with a new head, trained on labels or masks."""

    kind = "finetune_student"

    target: Literal["classification", "segmentation"] = Field(description="whole tiles by label, or pixels by mask")
    student: Network = Network()
    encoder: ModelUri | None = Field(
        None, description="pretrained student: its run, model folder or models:/name@alias; null: from scratch"
    )
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="labels, or names of the mask's values, 0 first; null: the set's labels, or background and tissue",
    )
    multi_label: bool = Field(
        False, description="classification: a tile may have several labels, separated by | in the index"
    )
    head: Literal["probe_first", "probe", "fresh"] = Field(
        "probe_first",
        description="classification: fit the head by logistic regression on the encoder's features, then train all; "
        "probe: that alone, in seconds; fresh: train all from a random head",
    )
    frozen: bool = Field(False, description="train only the head or decoder")
    batch_norm: Literal["frozen", "trained"] = Field(
        "trained",
        description="frozen: batch norms of the encoder stay as they were pretrained, by default for whole tiles",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate for each stage towards the stem"
    )
    loss: SupervisedLoss = SupervisedLoss()
    fraction: float = Field(1.0, gt=0, le=1, description="fraction of the training cases to use, to mimic few labels")
    fraction_seed: int = Field(0, ge=0, description="seed of their choice; a smaller fraction is a subset of a larger")

    @property
    def sources(self) -> Sources:
        return Sources(self.student, encoder=self.encoder)

    def epochs_of(self, steps_per_epoch: int) -> int:
        return 0 if self.head == "probe" else super().epochs_of(steps_per_epoch)

    _default_terms = model_validator(mode="before")(drop_dice_for_tiles)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_tiles(cls, data: Any) -> Any:
        """Fill in what is not said of a classifier's run; optimizer.epochs takes the default limit of steps off."""
        if not isinstance(data, Mapping) or data.get("target") != "classification":
            return data
        student = data.get("student")
        weights = student.get("weights") if isinstance(student, Mapping) else getattr(student, "weights", None)
        pretrained = data.get("encoder") is not None or weights is not None
        defaults = _PRETRAINED if pretrained else _FROM_SCRATCH
        said = {name: data.get(name, {}) for name in defaults}
        sections = {name: {**defaults[name], **keys} for name, keys in said.items() if isinstance(keys, Mapping)}
        if data.get("multi_label") and "balance" not in said["data"]:  # there is a label for each set of classes
            sections["data"].pop("balance", None)
        if "epochs" in said["optimizer"] and "steps" not in said["optimizer"]:
            sections["optimizer"].pop("steps")
        if sections.get("validation", {}).get("keep") == "last" and "patience" not in said["validation"]:
            sections["validation"].pop("patience")
        return {**({"batch_norm": "frozen", "layer_decay": 0.5} if pretrained else {}), **data, **sections}

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "FinetuneConfig":
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} names one of them twice; name each once")
        if self.encoder is not None and self.student.weights is not None:
            raise ValueError("encoder and student.weights both bring pretrained weights; name one of them")
        if self.frozen and self.encoder is None and self.student.weights is None:
            raise ValueError("frozen=true needs a pretrained encoder or student.weights; name one, or set frozen=false")
        if self.batch_norm == "frozen" and self.encoder is None and self.student.weights is None:
            raise ValueError("batch_norm=frozen keeps what was pretrained; name an encoder or student.weights")
        if self.head == "probe" and self.target == "segmentation":
            raise ValueError("head=probe is for classification; leave it out, or set frozen=true")
        if self.head == "probe" and self.validation.keep == "last":
            raise ValueError(
                "head=probe takes no step, after which keep=last would keep a model; set validation.keep=best"
            )
        if self.multi_label and self.target == "segmentation":
            raise ValueError("multi_label is for classification; leave it out")
        if self.loss.deep_weight:
            raise ValueError("loss.deep is for networks that are pretrained; leave it out")
        return self
