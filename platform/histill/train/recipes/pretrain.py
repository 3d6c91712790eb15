"""RCKD pretraining: the student learns a nuclei teacher's responses, without labels."""

from dataclasses import dataclass, field

from torch import nn

from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError
from histill.losses.layers import Layers, select_layers
from histill.losses.loss import check_terms
from histill.models.feature_maps import layer_channels
from histill.models.projection import ProjectedStudent
from histill.outputs import OutputSpec
from histill.stream.views import Views, check_window
from histill.tasks.responses import Responses
from histill.tasks.training_task import TrainingTask
from histill.teachers.cache import check_cache, check_views
from histill.train.inputs import Inputs
from histill.train.spec import RunSpec
from histill.train.validate import check_data, check_masks, check_network, make_card, make_source


@dataclass(frozen=True, kw_only=True)
class PretrainRun(RunSpec):
    """A checked RCKD run. The encoder's deep stages get heads of their own where `loss.deep` has a weight."""

    config: PretrainConfig
    layers: Layers = field(default_factory=Layers)  # whose feature maps are compared

    def build_model(self) -> nn.Module:
        model, deep = self.build_network(), self.config.loss.deep_weight > 0
        if not deep and not self.layers.teacher:
            return model
        return ProjectedStudent(model, self.layers, deep_classes=len(self.card.classes) * deep)

    def build_task(self) -> TrainingTask:
        responses = Responses(self.load_live_teacher(), self.layers, at_input_size=bool(self.layers.teacher))
        return TrainingTask(
            self.card.outputs, self.config.loss, responses, scored_by_teacher=True, name_of=self.name_tile
        )


def check(config: PretrainConfig, inputs: Inputs) -> PretrainRun:
    """Check tiles, splits, teacher and responses of an RCKD run. Raises InputError."""
    manifest, teacher, responses = inputs.manifest, inputs.teacher, inputs.responses
    assert teacher is not None
    check_terms(config.loss, teacher=True, live=config.responses is None, dense=True, multi_label=False)
    check_data(config, config.student, manifest, dense=True)
    tile_px, augment, cached = manifest.header.tile_px, config.data.augment, None
    if config.responses is not None and responses is not None:
        check_cache(config.responses, responses, manifest, teacher)
        _check_dense(responses.outputs, config.responses)
        check_views(config.responses, responses, augment)
        cached = responses.at(config.responses)
    else:
        _check_dense(teacher.outputs, f"teacher {config.teacher.value}")
        check_window(augment, tile_px, Views(teacher.sees(tile_px)))  # the teacher sees the same window
        teacher.sees(augment.crop_px or tile_px)
    card = make_card(config, inputs, teacher.outputs)
    compared = config.loss.select("maps")
    layers = select_layers(compared, layer_channels(check_network(card, config, inputs)), inputs.teacher_layers)
    shown_px = teacher.sees(tile_px) if layers.teacher else tile_px
    views = Views(card.size_px, shown_px if cached is None else None)
    masks, maps = "labels" in config.loss.needs, cached is not None and bool(layers.teacher)
    if masks:
        check_masks(manifest, config.data.train)
    return PretrainRun(
        config=config,
        card=card,
        source=make_source(config, manifest, views, masks=masks, responses=cached, maps=maps),
        views=views,
        inputs=inputs.digests(config),
        layers=layers,
    )


def _check_dense(outputs: OutputSpec, what: str) -> None:
    """Raise InputError when `what` responds for whole tiles."""
    if not outputs.dense:
        raise InputError(
            f"{what} answers for whole tiles, and pretraining needs a response to every pixel; name a segmentation "
            "teacher, or use jobs/distill_student.py."
        )
