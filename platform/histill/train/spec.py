"""A checked run: the settings sent to its workers, and how each worker builds the model and the task."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from histill.artifacts.encoder_weights import read_weights
from histill.artifacts.model_folder import ModelCard, build, load, resolve
from histill.config.runs import RunConfig
from histill.errors import InputError
from histill.models.transfer import Model, copy_encoder, load_encoder
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.masks import tile_name
from histill.tasks.task import Task
from histill.teachers.teacher import Teacher, load_teacher
from histill.tiles.labels import TileLabels
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest
from histill.train.checkpoint import Learner
from histill.train.schedule import make_optimizer


@dataclass(frozen=True, kw_only=True)
class RunSpec(ABC):
    """What all kinds of runs share. Small, because it is sent to every worker; workers read the manifest themselves."""

    config: RunConfig
    card: ModelCard
    source: TileSource
    views: Views
    inputs: dict[str, str]  # digests by key
    cases: frozenset[str] | None = None  # of the training split; None: all

    @abstractmethod
    def build_task(self) -> Task:
        """Build the task, in each worker, since a network teacher is too large to send."""

    def build_model(self) -> nn.Module:
        """Build the module to train, before its first step."""
        return self.build_network()

    def build_network(self) -> Model:
        """Build the card's model and load its weights, as far as there are any: published ones, those of a pretrained
        encoder, or of the model that the run continues from."""
        sources, storage, model = self.config.sources, self.config.storage, build(self.card)
        if sources.network.weights is not None:
            load_encoder(model, read_weights(sources.network.weights, storage).tensors, sources.network.weights)
        if sources.encoder is not None:
            pretrained, _, _ = load(resolve(sources.encoder, storage), storage)
            copy_encoder(pretrained, model)
        if self.config.continue_from is not None:
            start, _, _ = load(resolve(self.config.continue_from, storage), storage)
            model.load_state_dict(start.state_dict())
        return model

    def initialize(self, learner: Learner, training: TileStream) -> None:  # noqa: B027
        """What a new run does before its first step, on every worker; a resumed run does not."""

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer of `model`, the result of `build_model`."""
        return make_optimizer([list(model.parameters())], self.config.optimizer)

    def load_live_teacher(self) -> Teacher | None:
        """Load the teacher that runs alongside the student; None where its responses are cached.

        Raises InputError when it is not the teacher that the run was started with.
        """
        sources = self.config.sources
        if sources.teacher is None or sources.responses is not None:
            return None
        gpu = self.config.workers.gpus > 0
        teacher = load_teacher(sources.teacher, self.card.tile_mpp, self.config.storage, gpu=gpu)
        if teacher.digest != self.card.teacher_digest:
            raise InputError(
                f"teacher.model held {str(self.card.teacher_digest)[:12]} when the run was started, and it holds "
                f"{teacher.digest[:12]} now; restore the original, or choose another name for the run.",
                code="input-changed",
            )
        return teacher

    def load_embedding_teacher(self, name: str) -> Teacher:
        """Load a live teacher of embeddings. Raises InputError when it has changed since the run was checked."""
        config, gpu = self.config.sources.embeddings[name].teacher, self.config.workers.gpus > 0
        assert config is not None
        teacher = load_teacher(config, self.card.tile_mpp, self.config.storage, gpu=gpu)
        if teacher.digest != self.inputs[f"embeddings.{name}"]:
            raise InputError(
                f"embeddings.{name}.teacher is not what it was when the run was started; restore the original, or use "
                "another run name.",
                code="input-changed",
            )
        return teacher

    def read_labels(self, manifest: Manifest) -> TileLabels | None:
        """Each tile's class, or multi-hot classes; None for masks."""
        return self.find_labels(manifest, needed=True)

    def find_labels(self, manifest: Manifest, *, needed: bool) -> TileLabels | None:
        """As `read_labels`, with -1 for no label. With `needed`, raises InputError for an unlabeled training tile."""
        if self.card.kind != "classification":
            return None
        return manifest.labels_of(self.card.outputs, manifest.select(self.config.data.train, self.cases), needed=needed)

    def group_tiles(self, manifest: Manifest) -> np.ndarray | None:
        """Groups, int64 [tiles of the manifest], that get equal shares of an epoch; None: by `data.balance`."""
        return None

    def name_tile(self, row: int) -> str:
        """Describe the tile in a manifest row; reads the manifest, which is not part of this object."""
        return tile_name(read_manifest(self.source.tiles, self.source.storage), row)
