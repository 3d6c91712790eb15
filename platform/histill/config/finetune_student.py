"""Configuration of `histill finetune`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from histill.config.base import ModelUri
from histill.config.runs import Network, RunConfig, Sources, SupervisedLoss

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
    kinds: ClassVar = {
        "a pretrained classifier": {"target": "classification", "encoder": "<model>"},
        "a classifier from scratch": {"target": "classification"},
        "a segmenter": {"target": "segmentation"},
    }

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
        description="frozen: batch norms of the encoder stay as they were pretrained",
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

    @property
    def fits_head(self) -> bool:
        """Whether a classifier's head is fitted before the first step."""
        return self.head != "fresh" and self.continue_from is None

    def epochs_of(self, steps_per_epoch: int) -> int:
        return 0 if self.head == "probe" else super().epochs_of(steps_per_epoch)

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of a classifier's run; optimizer.epochs takes the default limit of steps off."""
        if given.get("target") != "classification":
            return {}
        student = given.get("student")
        weights = student.get("weights") if isinstance(student, Mapping) else getattr(student, "weights", None)
        pretrained = weights is not None or any(given.get(key) is not None for key in ("encoder", "continue_from"))
        found = {name: dict(keys) for name, keys in (_PRETRAINED if pretrained else _FROM_SCRATCH).items()}
        if given.get("multi_label"):  # there is a label for each set of classes
            found["data"].pop("balance")
        optimizer = given.get("optimizer")
        if isinstance(optimizer, Mapping) and "epochs" in optimizer:
            found["optimizer"].pop("steps")
        validation = given.get("validation")
        if isinstance(validation, Mapping) and validation.get("keep") == "last":
            found["validation"].pop("patience")
        return {**({"batch_norm": "frozen", "layer_decay": 0.5} if pretrained else {}), **found, "loss": {"dice": None}}

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "FinetuneConfig":
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} names one of them twice; name each once")
        if self.encoder is not None and self.student.weights is not None:
            raise ValueError("encoder and student.weights both bring pretrained weights; name one of them")
        pretrained = any(each is not None for each in (self.encoder, self.student.weights, self.continue_from))
        if self.frozen and not pretrained:
            raise ValueError("frozen=true needs a pretrained encoder or student.weights; name one, or set frozen=false")
        if self.batch_norm == "frozen" and not pretrained:
            raise ValueError("batch_norm=frozen keeps what was pretrained; name an encoder or student.weights")
        if self.head == "probe" and self.continue_from is not None:
            raise ValueError("head=probe fits a new head, and continue_from brings one; leave one of them out")
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
