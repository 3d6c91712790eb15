"""Configuration of `finetune_student.py`."""

from typing import Literal

from pydantic import Field, model_validator

from histill.config.base import ModelUri
from histill.config.runs import Network, RunConfig, Sources, SupervisedLoss, drop_dice_for_tiles


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
    frozen: bool = Field(False, description="train only the head or decoder")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate for each stage towards the stem"
    )
    loss: SupervisedLoss = SupervisedLoss()
    fraction: float = Field(1.0, gt=0, le=1, description="fraction of the training cases to use, to mimic few labels")
    fraction_seed: int = Field(0, ge=0, description="seed of their choice; a smaller fraction is a subset of a larger")

    @property
    def sources(self) -> Sources:
        return Sources(self.student, encoder=self.encoder)

    _default_terms = model_validator(mode="before")(drop_dice_for_tiles)

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "FinetuneConfig":
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} names one of them twice; name each once")
        if self.encoder is not None and self.student.weights is not None:
            raise ValueError("encoder and student.weights both bring pretrained weights; name one of them")
        if self.frozen and self.encoder is None and self.student.weights is None:
            raise ValueError("frozen=true needs a pretrained encoder or student.weights; name one, or set frozen=false")
        if self.multi_label and self.target == "segmentation":
            raise ValueError("multi_label is for classification; leave it out")
        if self.loss.deep_weight:
            raise ValueError("loss.deep is for networks that are pretrained; leave it out")
        return self
