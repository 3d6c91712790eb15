"""Resolution distillation: a student at low resolution mimics a teacher at high resolution."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from histill.artifacts.model_folder import ModelCard
from histill.config.distill_student import DistillConfig
from histill.errors import InputError
from histill.losses.layers import Layers, select_layers
from histill.losses.loss import check_terms
from histill.models.fake_quantization import list_layers, quantize_layers
from histill.models.feature_maps import layer_channels
from histill.models.projection import ProjectedStudent
from histill.models.segmenter import STRIDE
from histill.outputs import OutputSpec
from histill.stream.cached_views import CachedViews
from histill.stream.views import Views, check_window
from histill.tasks.responses import Responses
from histill.tasks.training_task import TrainingTask
from histill.teachers.cache import check_cache, check_views, decisions
from histill.teachers.teacher import Teacher
from histill.tiles.labels import TileLabels
from histill.tiles.manifest import Manifest
from histill.tiles.subsample import balance_weights, subsample_cases
from histill.train.inputs import Inputs
from histill.train.spec import RunSpec
from histill.train.validate import check_data, check_masks, check_network, make_card, make_source, select_cases


@dataclass(frozen=True, kw_only=True)
class DistillRun(RunSpec):
    """A checked distillation run. The feature maps of `layers` are compared through learned projections."""

    config: DistillConfig
    layers: Layers
    visible_cases: frozenset[str] | None = None  # whose labels the loss may see; None: all
    class_weights: tuple[float, ...] | None = None
    scored_by_teacher: bool = False  # when the validation split lacks labels or masks

    def build_model(self) -> nn.Module:
        deep, network = self.config.loss.deep_weight > 0, self.build_network()
        if self.config.quantization_aware:
            quantize_layers(network, list_layers(network))
        return ProjectedStudent(network, self.layers, deep_classes=len(self.card.classes) * deep)

    def build_task(self) -> TrainingTask:
        return TrainingTask(
            outputs=self.card.outputs,
            objective=self.config.loss,
            responses=Responses(self.load_live_teacher(), self.layers, at_input_size=True),
            class_weights=self.class_weights,
            scored_by_teacher=self.scored_by_teacher,
            name_of=self.name_tile,
        )

    def read_labels(self, manifest: Manifest) -> TileLabels | None:
        labels = self.find_labels(manifest, needed=False)
        if labels is not None and self.visible_cases is not None:
            split = self.config.data.train
            names = {case for (of, case), _ in manifest.count("split", "case") if of == split}
            hidden = frozenset(names if self.cases is None else names & self.cases) - self.visible_cases
            labels = labels.hide(manifest.select(split, hidden)) if hidden else labels
        return labels

    def group_tiles(self, manifest: Manifest) -> np.ndarray | None:
        if self.config.data.balance != "response":
            return None
        assert self.source.responses is not None
        return decisions(self.source.responses, manifest, self.config.storage)


def check(config: DistillConfig, inputs: Inputs) -> DistillRun:
    """Check tiles, splits, teacher, resolutions, layers and responses of a distillation. Raises InputError."""
    manifest, teacher = inputs.manifest, inputs.teacher
    assert teacher is not None
    if teacher.outputs.kind == "encoder":
        raise InputError(
            f"teacher {config.teacher.value} answers with embeddings, and this job learns predictions of classes; "
            "use histill pretrain with embeddings.<name>.teacher, and a student.size_px below the tiles' own "
            "for a student of lower resolution.",
            code="teacher-wrong-kind",
        )
    live = config.responses is None
    check_terms(
        config.loss, teacher=True, live=live, dense=teacher.outputs.dense, multi_label=teacher.outputs.multi_label
    )
    outputs, by_response = teacher.outputs, not teacher.outputs.dense and config.responses is not None
    check_data(config, config.student, manifest, dense=outputs.dense, by_response=by_response)
    cases = select_cases(config, manifest)
    card = make_card(config, inputs, outputs, cases=cases)
    check_resolutions(card, teacher.sees(card.tile_px), config)
    cached, views = _check_responses(config, inputs, teacher), _check_views(config, card, teacher)
    model = check_network(card, config, inputs)
    layers = select_layers(config.loss.select("maps"), layer_channels(model), inputs.teacher_layers)
    if outputs.multi_label and config.data.balance == "response":
        raise InputError(
            "data.balance=response is for classes that exclude each other, and the teacher's do not; leave it out.",
            code="option-not-applicable",
        )
    visible, by_teacher = _visible_labels(config, manifest, outputs, cases)
    maps = cached is not None and bool(layers.teacher)
    return DistillRun(
        config=config,
        card=card,
        source=make_source(
            config, manifest, views, masks=outputs.dense and not by_teacher, responses=cached, maps=maps
        ),
        views=views,
        inputs=inputs.digests(config),
        cases=cases,
        layers=layers,
        visible_cases=visible,
        class_weights=_class_weights(config, manifest, outputs, cases, visible),
        scored_by_teacher=by_teacher,
    )


def check_resolutions(card: ModelCard, teacher_px: int, config: DistillConfig) -> None:
    """Raise InputError when the teacher, which sees a tile at `teacher_px`, has a lower resolution than the student.

    Its resolution must be an integer multiple of the student's, unless `config.allow_fractional_ratio` is set.
    """
    teacher_mpp = card.tile_mpp * card.tile_px / teacher_px
    if card.size_px > teacher_px:
        raise InputError(
            f"the student would see tiles at {card.size_px} px ({card.mpp:.4g} um/px) and its teacher sees them at "
            f"{teacher_px} px ({teacher_mpp:.4g} um/px); set student.size_px to at most {teacher_px}.",
            code="resolution-too-fine",
        )
    if teacher_px % card.size_px and not config.allow_fractional_ratio:
        whole = [str(teacher_px // by) for by in (1, 2, 4, 8, 16) if teacher_px % by == 0]
        raise InputError(
            f"the student's {card.mpp:.4g} um/px are {teacher_px / card.size_px:.4g} times the teacher's "
            f"{teacher_mpp:.4g}, no whole number; set student.size_px to one such as {', '.join(whole)}, or "
            "allow_fractional_ratio=true.",
            code="size-does-not-fit",
        )


def _check_responses(config: DistillConfig, inputs: Inputs, teacher: Teacher) -> CachedViews | None:
    """Check the response cache and return its views; None when the teacher runs alongside."""
    if config.responses is None or inputs.responses is None:
        return None
    check_cache(config.responses, inputs.responses, inputs.manifest, teacher)
    check_views(config.responses, inputs.responses, config.data.augment)
    return inputs.responses.at(config.responses)


def _check_views(config: DistillConfig, card: ModelCard, teacher: Teacher) -> Views:
    """The input sizes of student and teacher; raises InputError when the augmentation window does not fit both."""
    augment, tile_px, stride = config.data.augment, card.tile_px, STRIDE if teacher.outputs.dense else 1
    shown_px = teacher.sees(tile_px) if teacher.features else tile_px  # other teachers resize by themselves
    live = config.responses is None
    views = Views(card.size_px, shown_px if live else None)
    check_window(augment, tile_px, views, stride)
    if teacher.outputs.dense and live:
        check_window(augment, tile_px, Views(shown_px), stride)  # the teacher sees the same window
        teacher.sees(augment.crop_px or tile_px)
    return views


def _visible_labels(
    config: DistillConfig, manifest: Manifest, outputs: OutputSpec, cases: frozenset[str] | None
) -> tuple[frozenset[str] | None, bool]:
    """The cases whose labels the loss may see, and whether validation is scored against the teacher instead of labels.

    Raises InputError for a label that is not a class of the teacher, and for missing masks that the loss needs.
    """
    training, validation = manifest.select(config.data.train, cases), manifest.rows_of(config.data.val)
    if outputs.dense:
        if config.labeled < 1:
            raise InputError(
                f"labeled is {config.labeled:g}, which is for classifiers; leave it out.", code="option-not-applicable"
            )
        if "labels" in config.loss.needs:
            check_masks(manifest, config.data.train, config.data.val)
            return None, False
        return None, True
    manifest.labels_of(outputs, training, needed=False)
    by_teacher = bool((manifest.labels_of(outputs, validation, needed=False)[validation] < 0).any())
    if config.labeled == 1:
        return None, by_teacher
    return subsample_cases(manifest, config.data.train, config.labeled, config.fraction_seed), by_teacher


def _class_weights(
    config: DistillConfig,
    manifest: Manifest,
    outputs: OutputSpec,
    cases: frozenset[str] | None,
    visible: frozenset[str] | None,
) -> tuple[float, ...] | None:
    """Class weights from the labels that the loss may see, if it weights classes."""
    if not config.loss.weighs_classes:
        return None
    among = visible if cases is None else cases if visible is None else cases & visible
    rows = manifest.select(config.data.train, among)
    labels = manifest.labels_of(outputs, rows, needed=False)
    return balance_weights(labels.count(rows, len(outputs.classes)))
