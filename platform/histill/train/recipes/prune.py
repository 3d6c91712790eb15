"""Pruning: a trained student loses its smallest channels, and recovers on the responses of a teacher.

After Adnan et al., "Structured Model Pruning for Efficient Inference in Computational Pathology", arXiv 2404.08831.
"""

import importlib.util
from dataclasses import dataclass, fields

from histill.artifacts.model_folder import build, load, resolve
from histill.config.prune_student import PruneConfig
from histill.errors import InputError
from histill.models.pruning import list_shapes, prune_network
from histill.models.transfer import Model
from histill.train.inputs import Inputs
from histill.train.recipes import distill
from histill.train.recipes.distill import DistillRun


@dataclass(frozen=True, kw_only=True)
class PruneRun(DistillRun):
    """A checked pruning run: a distillation that starts from the pruned student, whose shapes are on the card."""

    config: PruneConfig

    def build_network(self) -> Model:
        storage = self.config.storage
        student, _, _ = load(resolve(str(self.config.continue_from), storage), storage)
        pruned = prune_network(student, self.card.size_px, self.config.macs, name=self.card.encoder)
        model = build(self.card)
        model.load_state_dict(pruned.state_dict())
        return model


def check(config: PruneConfig, inputs: Inputs) -> PruneRun:
    """Check what a distillation needs, and that the student can be pruned. Raises InputError."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise InputError(
            "pruning needs the package torch-pruning, which is not installed; `pip install 'histill[pruning]'`.",
            code="package-missing",
        )
    checked = distill.check(config, inputs)
    card = checked.card
    if card.kind == "encoder":  # of which the embeddings would get another width
        raise InputError(
            f"{config.continue_from} is an encoder, and pruning keeps the outputs of classifiers and segmenters; "
            "fine-tune it first.",
            code="option-not-applicable",
        )
    pruned = prune_network(build(card), card.size_px, config.macs, name=card.encoder)
    shapes = list_shapes(pruned, build(card.model_copy(update={"shapes": {}})))
    values = {field.name: getattr(checked, field.name) for field in fields(checked)}
    return PruneRun(**values | {"card": card.model_copy(update={"shapes": shapes})})
