"""RCKD pretraining: the student answers what a nuclei teacher answers, without any label."""

from dataclasses import dataclass

from torch import nn

from histill.config.runs import PretrainConfig
from histill.distill.rckd import Rckd
from histill.errors import InputError
from histill.models.deep import DeepAnswers
from histill.models.students import Segmenter
from histill.outputs import OutputSpec
from histill.stream.views import Views, check_window
from histill.teachers.cache import check_cache, check_views
from histill.train.inputs import Inputs
from histill.train.spec import RunSpec
from histill.train.validate import check_data, check_network, make_card, make_source


@dataclass(frozen=True, kw_only=True)
class PretrainRun(RunSpec):
    """Stages of its encoder answer by themselves, too, where `loss.deep` has a weight."""

    config: PretrainConfig

    def build_model(self) -> nn.Module:
        model = self.build_network()
        if self.config.loss.deep == 0 or not isinstance(model, Segmenter):
            return model
        return DeepAnswers(model, len(self.card.classes))

    def build_task(self) -> Rckd:
        return Rckd(self.card.outputs, self.config.loss, self.load_live_teacher())


def check(config: PretrainConfig, inputs: Inputs) -> PretrainRun:
    """Tiles, splits, teacher and responses of an RCKD run. Raises InputError."""
    manifest, teacher, responses = inputs.manifest, inputs.teacher, inputs.responses
    assert teacher is not None
    check_data(config, config.student, manifest, dense=True)
    tile_px, augment, cached = manifest.header.tile_px, config.data.augment, None
    if config.responses is not None and responses is not None:
        check_cache(config.responses, responses, manifest, teacher)
        _check_dense(responses.outputs, config.responses)
        check_views(config.responses, responses, augment)
        cached = responses.at(config.responses)
    else:
        _check_dense(teacher.outputs, f"teacher {config.teacher.model}")
        check_window(augment, tile_px, Views(teacher.sees(tile_px)))  # it sees the window, too
        teacher.sees(augment.crop_px or tile_px)
    card = make_card(config, inputs, teacher.outputs)
    check_network(card, config, inputs)
    views = Views(card.size_px, card.tile_px if cached is None else None)
    return PretrainRun(
        config=config,
        card=card,
        source=make_source(config, manifest, views, responses=cached),
        views=views,
        inputs=inputs.digests(config),
        response_channels=card.outputs.packed_channels if cached is not None else 0,
    )


def _check_dense(outputs: OutputSpec, what: str) -> None:
    """Raises InputError when `what` answers for whole tiles."""
    if not outputs.dense:
        raise InputError(
            f"{what} answers for whole tiles, and pretraining needs a response to every pixel; name a segmentation "
            "teacher, or use jobs/distill_student.py."
        )
