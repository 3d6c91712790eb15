"""Supervised training of a network teacher: on the masks of a tile set, or on its labels."""

from dataclasses import dataclass

from torch import nn

from histill.config.runs import BOUNDARY, TeacherConfig
from histill.distill.classify import Classify
from histill.distill.supervised import Supervised
from histill.distill.task import Task
from histill.models.deep import DeepAnswers
from histill.models.students import Segmenter
from histill.outputs import OutputSpec
from histill.stream.views import Views
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
    """Stages of its encoder answer by themselves, too, where `deep` has a weight."""

    config: TeacherConfig
    class_weights: tuple[float, ...] | None = None

    def build_model(self) -> nn.Module:
        model = self.build_network()
        if self.config.deep == 0 or not isinstance(model, Segmenter):
            return model
        return DeepAnswers(model, len(self.card.classes))

    def build_task(self) -> Task:
        config, outputs = self.config, self.card.outputs
        if config.target == "classification":
            return Classify(outputs, self.class_weights, config.smoothing)
        return Supervised(outputs, config.dice, config.boundary_px, config.deep, self.name_tile)


def check(config: TeacherConfig, inputs: Inputs) -> TeacherRun:
    """Tiles, splits and masks or labels of a teacher's run. Raises InputError."""
    manifest, dense, weights = inputs.manifest, config.target == "segmentation", None
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
