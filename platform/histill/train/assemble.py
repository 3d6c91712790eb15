"""What a prepared run trains, made in each of its workers: a model and a task."""

from functools import partial

from torch import nn

from histill.artifacts.encoder_weights import read_weights
from histill.artifacts.model_folder import ModelCard, build, load, resolve
from histill.config.distill import DistillConfig
from histill.config.finetune import FinetuneConfig
from histill.config.runs import PretrainConfig, TeacherConfig
from histill.distill.classify import Classify
from histill.distill.masks import tile_name
from histill.distill.rckd import Rckd
from histill.distill.resolution import Distill
from histill.distill.supervised import Supervised
from histill.distill.task import Task
from histill.errors import InputError
from histill.models.deep import DeepAnswers
from histill.models.encoders import carry_encoder, freeze_encoder, load_encoder
from histill.models.matching import Layers, Matching
from histill.models.students import Segmenter
from histill.stream.read import Source
from histill.teachers.teacher import Teacher, load_teacher
from histill.tiles.manifest import read_manifest
from histill.train.prepare import Prepared


def make_model(prepared: Prepared) -> nn.Module:
    """What learns in the run, before its first step, with the pretrained encoder if there is one."""
    config, model = prepared.config, build(prepared.card)
    if prepared.network.weights is not None:
        load_encoder(model, read_weights(prepared.network.weights, config.storage), prepared.network.weights)
    if isinstance(config, FinetuneConfig | DistillConfig) and config.encoder is not None:
        pretrained, _, _ = load(resolve(config.encoder, config.storage), config.storage)
        carry_encoder(pretrained, model)
    if isinstance(config, FinetuneConfig) and config.frozen:
        freeze_encoder(model)
    if prepared.deep and isinstance(model, Segmenter):
        return DeepAnswers(model, len(prepared.card.classes))
    return model if prepared.layers is None else Matching(model, prepared.layers)


def make_task(prepared: Prepared) -> Task:
    """The run's task, made in each worker, since a live network teacher is too large to send around."""
    config, card = prepared.config, prepared.card
    if isinstance(config, PretrainConfig):
        teacher = _live_teacher(config, card)
        return Rckd(card.outputs, config.loss, teacher)
    if isinstance(config, DistillConfig):
        teacher = _live_teacher(config, card)
        return Distill(
            outputs=card.outputs,
            terms=config.loss,
            layers=prepared.layers or Layers(),
            teacher=teacher,
            judged_by_teacher=prepared.judged_by_teacher,
            name_of=partial(_tile_name, prepared.source),
        )
    if isinstance(config, TeacherConfig | FinetuneConfig) and config.target == "classification":
        return Classify(card.outputs, prepared.class_weights, config.smoothing)
    if isinstance(config, TeacherConfig | FinetuneConfig):
        boundary_px, deep = (config.boundary_px, config.deep) if isinstance(config, TeacherConfig) else (0, 0.0)
        return Supervised(card.outputs, config.dice, boundary_px, deep, partial(_tile_name, prepared.source))
    raise TypeError(f"no task for a {type(config).__name__}")


def _live_teacher(config: PretrainConfig | DistillConfig, card: ModelCard) -> Teacher | None:
    """The teacher that runs beside, if one does. Raises InputError when it is another than the run was begun with."""
    if config.responses is not None:
        return None
    teacher = load_teacher(config.teacher, card.tile_mpp, config.storage, gpu=config.workers.gpus > 0)
    if teacher.digest != card.teacher_digest:
        raise InputError(
            f"teacher.model held {str(card.teacher_digest)[:12]} when the run was begun, and under the same name it "
            f"holds {teacher.digest[:12]} now; put back what it was, or choose another name for the run."
        )
    return teacher


def _tile_name(source: Source, row: int) -> str:
    """As in the manifest, which is read for it: a task is sent around without."""
    return tile_name(read_manifest(source.tiles, source.storage), row)
