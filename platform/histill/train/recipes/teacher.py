"""Supervised training of a network teacher on the masks or labels of a tile set."""

from dataclasses import dataclass

from torch import nn

from histill.config.runs import BOUNDARY
from histill.config.train_teacher import TeacherConfig
from histill.losses.layers import Layers
from histill.losses.loss import check_terms
from histill.models.projection import ProjectedStudent
from histill.outputs import OutputSpec
from histill.stream.views import Views
from histill.tasks.training_task import TrainingTask
from histill.train.inputs import Inputs
from histill.train.spec import RunSpec
from histill.train.validate import (
    check_data,
    check_masks,
    check_network,
    make_card,
    make_source,
    resolve_classes,
    select_cases,
)


@dataclass(frozen=True, kw_only=True)
class TeacherRun(RunSpec):
    """A checked teacher run. The encoder's deep stages get heads of their own where `loss.deep` has a weight."""

    config: TeacherConfig
    class_weights: tuple[float, ...] | None = None

    def build_model(self) -> nn.Module:
        model = self.build_network()
        if self.config.loss.deep_weight == 0:
            return model
        return ProjectedStudent(model, Layers(), deep_classes=len(self.card.classes))

    def build_task(self) -> TrainingTask:
        config, weights = self.config, self.class_weights
        return TrainingTask(
            self.card.outputs,
            config.loss,
            class_weights=weights,
            boundary_px=config.boundary_px,
            name_of=self.name_tile,
        )


def check(config: TeacherConfig, inputs: Inputs) -> TeacherRun:
    """Check tiles, splits and masks or labels of a teacher's run. Raises InputError."""
    manifest, dense, weights = inputs.manifest, config.target == "segmentation", None
    check_terms(config.loss, teacher=False, live=False, dense=dense, multi_label=config.multi_label)
    check_data(config, config.network, manifest, dense=dense)
    cases = select_cases(config, manifest)
    if dense:
        check_masks(manifest, config.data.train, config.data.val)
        classes = config.classes or ("background", "nucleus")
        outputs = OutputSpec("segmentation", (*classes, BOUNDARY) if config.boundary_px else classes)
    else:
        outputs, weights = resolve_classes(config, manifest, cases)
    card = make_card(config, inputs, outputs, cases=cases)
    check_network(card, config, inputs)
    views = Views(card.size_px)
    return TeacherRun(
        config=config,
        card=card,
        source=make_source(config, manifest, views, masks=dense),
        views=views,
        inputs=inputs.digests(config),
        cases=cases,
        class_weights=weights,
    )
