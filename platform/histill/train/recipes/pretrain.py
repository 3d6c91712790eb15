"""Pretraining without labels: on a nuclei teacher's responses (RCKD), on teachers' embeddings, or on both."""

from dataclasses import dataclass, field, replace

from torch import nn

from histill.artifacts.model_folder import ModelCard
from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError
from histill.losses.layers import Layers, select_layers
from histill.losses.loss import check_terms
from histill.models.encoders import embedding_width
from histill.models.feature_maps import layer_channels
from histill.models.projection import ProjectedStudent
from histill.models.transfer import Model
from histill.outputs import OutputSpec
from histill.stream.cached_views import CachedViews
from histill.stream.views import Views, check_window
from histill.tasks.embeddings import Embeddings
from histill.tasks.responses import Responses
from histill.tasks.training_task import TrainingTask
from histill.teachers.cache import check_cache, check_views
from histill.train.embeddings import EmbeddingPlan, plan_embeddings
from histill.train.inputs import Inputs
from histill.train.spec import RunSpec
from histill.train.validate import check_data, check_masks, check_network, make_card, make_source


@dataclass(frozen=True, kw_only=True)
class PretrainRun(RunSpec):
    """A checked run. The encoder's deep stages get heads of their own where `loss.deep` has a weight."""

    config: PretrainConfig
    layers: Layers = field(default_factory=Layers)  # whose feature maps are compared
    embeddings: EmbeddingPlan = field(default_factory=EmbeddingPlan)

    def build_model(self) -> nn.Module:
        model, deep = self.build_network(), self.config.loss.deep_weight > 0
        if not deep and not self.layers.teacher and not self.embeddings.sources:
            return model
        deep_classes = len(self.card.classes) * deep
        return ProjectedStudent(model, self.layers, deep_classes=deep_classes, heads=self.embeddings.heads)

    def build_task(self) -> TrainingTask:
        responses = None
        if self.config.teacher is not None:
            responses = Responses(self.load_live_teacher(), self.layers, at_input_size=bool(self.layers.teacher))
        return TrainingTask(
            self.card.outputs,
            self.config.loss,
            responses,
            self._load_embeddings(),
            prefixes=self.config.prefixes,
            scored_by_teacher=True,
            name_of=self.name_tile,
        )

    def _load_embeddings(self) -> Embeddings | None:
        plan = self.embeddings
        if not plan.sources:
            return None
        live = {name: self.load_embedding_teacher(name) for name in plan.live}
        sources = {name: replace(source, live=live.get(name)) for name, source in plan.sources.items()}
        return Embeddings(sources, tokens="tokens" in self.config.loss.needs)


def check(config: PretrainConfig, inputs: Inputs) -> PretrainRun:
    """Check tiles, splits, teachers and responses of a run. Raises InputError."""
    manifest, teacher, loss = inputs.manifest, inputs.teacher, config.loss
    dense = teacher is not None
    check_terms(
        loss,
        teacher=dense,
        live=config.responses is None,
        dense=dense,
        multi_label=False,
        embeddings=bool(config.embeddings),
    )
    check_data(config, config.student, manifest, dense=dense)
    cached = _check_teacher(config, inputs)
    plan = plan_embeddings(config, inputs)
    card, model = _make_card(config, inputs)
    layers = select_layers(loss.select("maps"), layer_channels(model), inputs.teacher_layers)
    masks, maps = "labels" in loss.needs, cached is not None and bool(layers.teacher)
    if masks:
        _check_masks(config, inputs)
    views = Views(card.size_px, _teacher_px(config, inputs, layers))
    return PretrainRun(
        config=config,
        card=card,
        source=make_source(config, manifest, views, masks=masks, responses=cached, maps=maps, embeddings=plan.cached),
        views=views,
        inputs=inputs.digests(config),
        layers=layers,
        embeddings=plan,
    )


def _check_teacher(config: PretrainConfig, inputs: Inputs) -> CachedViews | None:
    """The cached responses of the teacher of pixels; None where it runs live, or there is none."""
    manifest, teacher, responses, augment = inputs.manifest, inputs.teacher, inputs.responses, config.data.augment
    if config.teacher is None or teacher is None:
        return None
    if not config.loss.of_answers:
        raise InputError(
            "loss has no term on the model's predictions, which teacher is for; give one such as "
            "loss.soft_cross_entropy a weight, or leave teacher out.",
            code="config-conflict",
        )
    tile_px = manifest.header.tile_px
    if config.responses is not None and responses is not None:
        check_cache(config.responses, responses, manifest, teacher)
        _check_dense(responses.outputs, config.responses)
        check_views(config.responses, responses, augment)
        return responses.at(config.responses)
    _check_dense(teacher.outputs, f"teacher {config.teacher.value}")
    check_window(augment, tile_px, Views(teacher.sees(tile_px)))  # the teacher sees the same window
    teacher.sees(augment.crop_px or tile_px)
    return None


def _make_card(config: PretrainConfig, inputs: Inputs) -> tuple[ModelCard, Model]:
    """The card of the run's product, and its network without pretrained weights."""
    encoder = inputs.teacher is None
    if encoder and not config.loss.of_embeddings:
        raise InputError(
            "loss.tokens alone does not train the embedding that an encoder is for; give a term such as "
            "loss.embedding_cosine a weight as well.",
            code="config-conflict",
        )
    card = make_card(config, inputs, OutputSpec("encoder") if inputs.teacher is None else inputs.teacher.outputs)
    model = check_network(card, config, inputs)
    width = embedding_width(model)
    if config.prefixes and config.prefixes[-1] >= width:
        raise InputError(
            f"prefixes has {config.prefixes[-1]}, and the embedding of {card.encoder} has {width} dimensions; choose "
            "lengths below that.",
            code="config-wrong-value",
        )
    return card.model_copy(update={"width": width if encoder else None, "prefixes": config.prefixes}), model


def _teacher_px(config: PretrainConfig, inputs: Inputs, layers: Layers) -> int | None:
    """The side of the view that live teachers are shown; None without any."""
    tile_px, teacher = inputs.manifest.header.tile_px, inputs.teacher
    sides = {tile_px} if inputs.embedding_teachers else set()
    if teacher is not None and config.responses is None:
        sides.add(teacher.sees(tile_px) if layers.teacher else tile_px)
    if len(sides) > 1:
        raise InputError(
            "the teacher whose feature maps are compared and the live teachers of embeddings see tiles at differing "
            "sides; cache the embeddings.",
            code="responses-needed",
        )
    return next(iter(sides), None)


def _check_masks(config: PretrainConfig, inputs: Inputs) -> None:
    if inputs.teacher is None:
        named = next(iter(config.loss.select("labels")))
        raise InputError(
            f"loss.{named} learns from masks, and an encoder has no classes; leave it out (null).",
            code="option-not-applicable",
        )
    check_masks(inputs.manifest, config.data.train)


def _check_dense(outputs: OutputSpec, what: str) -> None:
    """Raise InputError when `what` responds for whole tiles."""
    if outputs.kind == "encoder":
        raise InputError(
            f"{what} answers with embeddings, and teacher and responses are for predictions of pixels; name it as "
            "embeddings.<name>.teacher, or its cache as embeddings.<name>.responses.",
            code="teacher-wrong-kind",
        )
    if not outputs.dense:
        raise InputError(
            f"{what} answers for whole tiles, and pretraining needs a response to every pixel; name a segmentation "
            "teacher, or use histill distill.",
            code="teacher-wrong-kind",
        )
