"""Configuration of `histill train`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from histill.config.runs import BOUNDARY, Network, RunConfig, Sources, SupervisedLoss


class TeacherNetwork(Network):
    """As a student's network, with another default encoder."""

    encoder: str = Field("resnet18", description="any timm encoder with feature maps, e.g. resnet18, resnet50")


class TeacherConfig(RunConfig):
    """A network teacher, trained on the masks or labels of a tile set."""

    kind = "train_teacher"
    kinds: ClassVar = {"a segmenter": {"target": "segmentation"}, "a classifier": {"target": "classification"}}

    target: Literal["segmentation", "classification"] = Field(
        "segmentation", description="pixels by mask, or whole tiles by label"
    )
    network: TeacherNetwork = TeacherNetwork()
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="names of the mask's values, 0 first, or labels; null: background and nucleus, or the set's labels",
    )
    multi_label: bool = Field(
        False, description="classification: a tile may have several labels, separated by | in the index, or none"
    )
    fraction: float = Field(1.0, gt=0, le=1, description="fraction of the training cases to use")
    fraction_seed: int = Field(0, ge=0, description="seed of their choice; a smaller fraction is a subset of a larger")
    boundary_px: int = Field(
        0,
        ge=0,
        description="width of the foreground's edges that become an extra class, boundary, in pixels of the network's "
        "input; 0: none",
    )
    loss: SupervisedLoss = SupervisedLoss()

    @property
    def sources(self) -> Sources:
        return Sources(self.network, "network")

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"loss": {"dice": None}} if given.get("target") == "classification" else {}

    @model_validator(mode="after")
    def _sound_classes(self) -> "TeacherConfig":
        classes = self.classes or ()
        if self.target == "classification" and (self.boundary_px or self.loss.deep_weight):
            raise ValueError("boundary_px and loss.deep are for segmentation; leave them out")
        if self.target == "segmentation" and self.multi_label:
            raise ValueError("multi_label is for classification; leave it out")
        if len(set(classes)) < len(classes):
            raise ValueError(f"classes {list(classes)} names one of them twice; name each once")
        if BOUNDARY in classes:
            raise ValueError(
                f"classes {list(classes)} names {BOUNDARY!r}, which is what boundary_px adds to those of the "
                "masks; set boundary_px, or choose another name"
            )
        return self
