"""The configuration that all training runs share: tiles, network, optimizer, workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from histill.config.augment import Augment
from histill.config.base import ModelUri, Strict, Uri
from histill.config.common import Name, Split, Storage, Teacher, Tracking, WorkerGroup
from histill.config.embeddings import EmbeddingTeacher
from histill.licenses import License
from histill.losses.loss import Loss
from histill.losses.terms.cross_entropy import CrossEntropy
from histill.losses.terms.dice import Dice

STRIDE = 32
"""A U-Net's input sides must be multiples of this."""
BOUNDARY = "boundary"
"""Name of the last class, which `TeacherConfig.boundary_px` adds."""


class Data(Strict):
    """The tiles of a run and their order."""

    tiles: Uri = Field(description="folder of the tile set")
    train: Split = Field("train", description="split to train on")
    val: Split = Field("val", description="split that is scored after each epoch")
    batch_size: int = Field(32, ge=1, description="global batch size, independent of the number of workers")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the order and of the augmentation")
    balance: Literal["label", "slide", "case", "response"] | None = Field(
        None,
        description="give each label, slide or case, or each class of cached whole-tile responses, an equal share of "
        "an epoch; null: each tile once",
    )
    shuffle_tiles: int | None = Field(
        None, ge=1, description="encoded tiles in the shuffle buffers of all workers; null: 64 batches, at least 4096"
    )
    augment: Augment = Augment()
    decode: Literal["auto", "worker", "cluster"] = Field(
        "auto",
        description="who reads and decodes tiles: threads of each worker, or Ray Data on any node with free CPUs; "
        "auto: the cluster if its other nodes have a free CPU for each of these threads and views are fewer bytes than "
        "tiles, unless in a sweep or an elastic group",
    )
    decode_nodes: dict[str, str] = Field(
        {}, description="Ray labels of the nodes that may decode for the workers, such as {pool: cpu}; {}: any node"
    )
    read_threads: int = Field(4, ge=1, description="concurrent read requests of each worker")
    decode_threads: int = Field(2, ge=1, description="decoding threads of each worker")
    cache_decoded: bool = Field(
        False,
        description="keep tiles in storage.cache decoded, at the network's input size: for sweeps and many epochs",
    )
    max_corrupt: int = Field(
        0, ge=0, description="number of undecodable tiles that an epoch may mask out before the run fails"
    )


class Network(Strict):
    """A U-Net over a timm encoder."""

    encoder: str = Field("csat", description="any timm encoder with feature maps, e.g. csat, csat_tiny, resnet18")
    weights: Uri | None = Field(
        None, description="pretrained weights of the encoder: safetensors with timm's names; null: random weights"
    )
    weights_license: License | None = Field(
        None, description="license of these weights, e.g. Apache-2.0; null: not on record"
    )
    decoder_channels: tuple[int, ...] = Field(
        (96, 64, 48, 32, 16),
        min_length=5,
        max_length=5,
        description="widths of a U-Net's decoder, from deep to shallow",
    )
    size_px: int | None = Field(
        None,
        ge=8,
        description="input side of the network for a whole tile, for a U-Net a multiple of 32; null: the tile's own",
    )
    mpp: float | None = Field(None, gt=0, description="microns per pixel of the network's input, instead of size_px")

    @model_validator(mode="after")
    def _one_resolution(self) -> "Network":
        if self.size_px is not None and self.mpp is not None:
            raise ValueError("set size_px or mpp, not both")
        return self

    @model_validator(mode="after")
    def _license_of_weights(self) -> "Network":
        if self.weights_license is not None and self.weights is None:
            raise ValueError("weights_license is that of weights, which are null; name them, or leave it out")
        return self


class SupervisedLoss(Loss):
    """Loss terms of supervised training; `dice` is left out for whole tiles."""

    cross_entropy: CrossEntropy | None = CrossEntropy()
    dice: Dice | None = Dice()


def fill_in(given: Any, defaults: Any) -> Any:
    """`given` with the `defaults` of the keys that it lacks, at every depth where both are mappings."""
    if not isinstance(given, Mapping) or not isinstance(defaults, Mapping):
        return given
    return {**defaults, **{key: fill_in(value, defaults.get(key)) for key, value in given.items()}}


class Optimizer(Strict):
    """AdamW or Muon with a linear warm-up and a cosine decay to zero."""

    name: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: orthogonalized momentum for matrices and AdamW for the rest, at learning rates that suit "
        "AdamW (arXiv 2502.16982); learns from scratch in fewer steps, each a little dearer",
    )
    epochs: int = Field(10, ge=1, description="number of passes over the training tiles")
    steps: int | None = Field(
        None, ge=1, description="global batches at most, rounded to whole passes; null, and in sweeps: no limit"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate, for the global batch")
    weight_decay: float = Field(0.05, ge=0, description="decoupled weight decay, not applied to norms and biases")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the steps with linear warm-up")
    clip_norm: float = Field(1.0, gt=0, description="gradient clipping norm")
    accumulate: int = Field(1, ge=1, description="gradient accumulation steps per batch, to save memory")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of an EMA of the weights, which is then scored and kept; 0: none"
    )

    def epochs_of(self, steps_per_epoch: int) -> int:
        """Passes over the training tiles, at least one, for a set of so many global batches."""
        return self.epochs if self.steps is None else min(self.epochs, max(1, round(self.steps / steps_per_epoch)))


class Validation(Strict):
    """How often a run is validated, and what follows from it."""

    every_steps: int = Field(
        1, ge=1, description="validate at the end of an epoch once so many steps have passed; 1: after every epoch"
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="model that the run ends with: the last, or the best on data.val by balanced accuracy or Dice, the "
        "latest of equal ones",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="with keep=best: stop after so many validations without a new best; null: never",
    )

    def is_due(self, epoch: int, steps_per_epoch: int) -> bool:
        """Whether to validate after `epoch`, in which a multiple of `every_steps` lies: the same after a restart."""
        begin, end = epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch
        return end // self.every_steps > begin // self.every_steps

    @model_validator(mode="after")
    def _patience_with_the_best(self) -> "Validation":
        if self.patience is not None and self.keep == "last":
            raise ValueError("patience waits for a better model and keep=last keeps the last; set keep=best")
        return self


@dataclass(frozen=True)
class Sources:
    """The sources of a run's model, besides its tiles."""

    network: Network  # with its published weights, if any
    network_key: str = "student"
    teacher: Teacher | None = None
    responses: str | None = None  # cached responses of that teacher; None: it runs live
    embeddings: Mapping[str, EmbeddingTeacher] = field(default_factory=dict)  # by name
    encoder: str | None = None  # model folder or run that provides the initial encoder


class RunConfig(Strict):
    """The configuration of every training run."""

    kind: ClassVar[str]
    """Name of the job in the run's record."""
    kinds: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Kinds of run whose defaults differ, by their names: an example of the keys that tell each. Empty: one kind."""

    name: Name = Field(description="name of the run; the same name again resumes it")
    runs: Uri = Field(description="folder that holds the runs, local or s3://")
    data: Data
    continue_from: ModelUri | None = Field(
        None,
        description="finished run, model folder or models:/name@alias whose weights this run starts from, all of them, "
        "with a new optimizer and schedule: to train a finished run longer; null: new weights",
    )
    optimizer: Optimizer = Optimizer()
    validation: Validation = Validation()
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the initial weights")
    checkpoint_every: int = Field(
        500, ge=1, description="steps between checkpoints within an epoch; every epoch ends with one"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the trained network's activations")
    compile: bool = Field(False, description="torch.compile the network; costs a minute or two before the first step")
    max_failures: int = Field(2, ge=0, description="number of worker failures to recover from before the run fails")
    workers: WorkerGroup = WorkerGroup()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()

    @property
    def sources(self) -> Sources:
        """The sources of the model."""
        raise NotImplementedError

    def epochs_of(self, steps_per_epoch: int) -> int:
        """Passes over the training tiles, for a set of so many global batches; 0: none."""
        return self.optimizer.epochs_of(steps_per_epoch)

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The defaults of a run that is `given` these keys, where they are others than those of the fields."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, data: Any) -> Any:
        return fill_in(data, cls.defaults_for(data)) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _one_beginning(self) -> "RunConfig":
        sources = self.sources if self.continue_from is not None else None
        if sources is not None and (sources.encoder is not None or sources.network.weights is not None):
            raise ValueError(
                "continue_from brings all weights; leave it out, or leave out encoder and "
                f"{sources.network_key}.weights"
            )
        return self

    @model_validator(mode="after")
    def _somewhere_to_keep(self) -> "RunConfig":
        if self.data.cache_decoded and self.storage.cache is None:
            raise ValueError("data.cache_decoded needs a place on the nodes' disks; set storage.cache, or leave it out")
        return self

    @model_validator(mode="after")
    def _ray_to_decode_with(self) -> "RunConfig":
        if self.workers.in_process and self.data.decode == "cluster":
            raise ValueError(
                "data.decode=cluster decodes in tasks of Ray, which workers.count 0 leaves out; set it to worker"
            )
        return self

    @model_validator(mode="after")
    def _tiles_for_every_worker(self) -> "RunConfig":
        tiles, workers, parts = self.data.batch_size, self.workers.most, self.optimizer.accumulate
        if tiles < workers * parts:
            raise ValueError(
                f"data.batch_size {tiles} is less than a tile for each of optimizer.accumulate {parts} parts of "
                f"workers.count {workers}; choose at least {workers * parts}, or fewer parts or workers"
            )
        return self
