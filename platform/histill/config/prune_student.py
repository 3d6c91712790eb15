"""Configuration of `histill prune`."""

from pydantic import Field, model_validator

from histill.config.base import ModelUri
from histill.config.distill_student import DistillConfig, DistillLoss
from histill.losses.terms.features import Features


class PruneLoss(DistillLoss):
    """Loss terms by which a pruned student recovers: those of distillation on outputs."""

    features: Features | None = None


class PruneConfig(DistillConfig):
    """A trained student that loses its smallest channels, and recovers by distillation."""

    kind = "prune_student"

    continue_from: ModelUri | None = Field(
        None, description="the student to prune: its run, model folder or models:/name@alias; needed"
    )
    macs: float = Field(
        0.5, gt=0, lt=1, description="share of the student's multiply-accumulates that may be left, e.g. 0.3"
    )
    loss: PruneLoss = PruneLoss()

    @model_validator(mode="after")
    def _a_student_to_prune(self) -> "PruneConfig":
        if self.continue_from is None:
            raise ValueError("continue_from names the student to prune; set it to a run or a model folder")
        if "maps" in self.loss.needs or self.loss.deep_weight:
            raise ValueError(
                "terms on feature maps need the widths that an encoder has before it is pruned; leave out those such "
                "as loss.features, and use loss.divergence"
            )
        return self
