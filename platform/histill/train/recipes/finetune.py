"""Fine-tuning: a pretrained encoder with a new head, trained on labels or masks."""

from dataclasses import dataclass

import torch
from torch import nn

from histill.config.finetune_student import FinetuneConfig
from histill.config.runs import BOUNDARY
from histill.errors import InputError
from histill.losses.loss import check_terms
from histill.models.classifiers import Classifier
from histill.models.transfer import freeze_batch_norms, freeze_encoder, parameters_by_depth
from histill.outputs import OutputSpec
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.training_task import TrainingTask
from histill.train.checkpoint import Learner
from histill.train.head_probe import find_head, fit_head
from histill.train.inputs import Inputs
from histill.train.schedule import make_optimizer
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
class FinetuneRun(RunSpec):
    """A checked fine-tuning run. The encoder is frozen, or has a learning rate that decays towards the stem."""

    config: FinetuneConfig
    class_weights: tuple[float, ...] | None = None

    def build_model(self) -> nn.Module:
        model = self.build_network()
        if self.config.frozen:
            freeze_encoder(model)
        if self.config.batch_norm == "frozen":
            freeze_batch_norms(model)
        return model

    def initialize(self, learner: Learner, training: TileStream) -> None:
        """Fit the head of a classifier as a probe, unless a fresh one is asked for or there is one already."""
        if self.config.fits_head and isinstance(learner.model, Classifier):
            balanced = self.config.data.balance == "label" or self.class_weights is not None
            fit_head(learner.model, self.card.outputs, training, balanced=balanced)
            learner.restart_average()

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        decay = self.config.layer_decay
        if decay == 1:
            return super().build_optimizer(model)
        return make_optimizer(parameters_by_depth(model), self.config.optimizer, decay)  # type: ignore[arg-type]

    def build_task(self) -> TrainingTask:
        return TrainingTask(
            self.card.outputs, self.config.loss, class_weights=self.class_weights, name_of=self.name_tile
        )


def check(config: FinetuneConfig, inputs: Inputs) -> FinetuneRun:
    """Check tiles, splits, labels or masks, and the pretrained encoder of a fine-tuning run. Raises InputError."""
    manifest, dense, weights = inputs.manifest, config.target == "segmentation", None
    check_terms(config.loss, teacher=False, live=False, dense=dense, multi_label=config.multi_label)
    cases = select_cases(config, manifest)
    if dense:
        classes = config.classes or ("background", "tissue")
        if BOUNDARY in classes:
            raise InputError(
                f"classes {list(classes)} names {BOUNDARY!r}, which is reserved for the class that a teacher's "
                "boundary_px adds to its masks; choose another name.",
                code="config-wrong-value",
            )
        check_masks(manifest, config.data.train, config.data.val)
        outputs = OutputSpec("segmentation", classes)
    else:
        outputs, weights = resolve_classes(config, manifest, cases)
    check_data(config, config.student, manifest, dense=dense)  # after the labels, by which tiles may be balanced
    card = make_card(config, inputs, outputs, cases=cases)
    model = check_network(card, config, inputs)
    if config.fits_head and isinstance(model, Classifier):
        find_head(model)
    views = Views(card.size_px)
    return FinetuneRun(
        config=config,
        card=card,
        source=make_source(config, manifest, views, masks=dense),
        views=views,
        inputs=inputs.digests(config),
        cases=cases,
        class_weights=weights,
    )
