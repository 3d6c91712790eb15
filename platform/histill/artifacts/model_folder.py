"""Model folders: `model.safetensors` and `model.json`, enough to rebuild the model anywhere.

No pickle is ever read: safetensors contain only tensors and no code.
"""

import hashlib
import os
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import safetensors
from pydantic import Field

from histill.artifacts.checksums import check_file
from histill.config.base import Strict
from histill.config.common import Storage
from histill.errors import InputError
from histill.licenses import License
from histill.outputs import OutputSpec
from histill.storage.control import exists, read_bytes, write_bytes
from histill.storage.records import Record, read_record, record_bytes
from histill.storage.uris import join

if TYPE_CHECKING:
    from torch import Tensor, nn

    from histill.models.transfer import Model
    from histill.tiles.manifest import Header

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"
ONNX_NAME = "model.onnx"  # of the model's ONNX file, where one has been made
FINISHED_NAME = "finished.json"
SAME_MPP = 0.05  # relative difference up to which two resolutions count as equal


class FinishedRun(Record):
    """The result of a run or a sweep; its presence marks the run finished."""

    noun: ClassVar[str] = "the record of a finished run"
    remedy: ClassVar[str] = "name one of the run's checkpoints in its place"

    model: str = Field(description="folder of the final model")
    name: str | None = Field(None, description="that folder relative to the run's; null: elsewhere or not recorded")
    metrics: dict[str, Any] = Field(description="metrics of the last epoch")

    def model_in(self, uri: str) -> str:
        """The final model of the run in folder `uri`, even if that was moved or copied."""
        return join(uri, self.name) if self.name else self.model


class TaughtOn(Strict):
    """A tile set that a model learned from."""

    digest: str = Field(description="manifest digest")
    uri: str | None = Field(None, description="where it was stored; null: not recorded")


class TaughtBy(Strict):
    """A teacher, or published weights, that somebody else licensed and that a model learned from."""

    name: str = Field(description="such as `encoder teacher s3://bucket/uni`")
    license: License | None = Field(None, description="its license; null: not on record")


class ModelCard(Record):
    """The model card: architecture, inputs and outputs, and what the model was trained on."""

    noun: ClassVar[str] = "a model card"
    remedy: ClassVar[str] = "export the model again"

    kind: Literal["segmentation", "classification", "encoder"] = "segmentation"
    multi_label: bool = Field(False, description="whether a classifier's classes are not mutually exclusive")
    encoder: str = Field(description="timm name of the encoder")
    decoder_channels: tuple[int, ...] = Field(description="widths of a segmenter's decoder; empty for a classifier")
    classes: tuple[str, ...] = Field(description="names of the outputs; background first, a boundary last")
    mean: tuple[float, float, float] = Field(description="input normalization of RGB in 0..1")
    std: tuple[float, float, float]
    tile_px: int = Field(description="side of the tiles it was trained on")
    tile_mpp: float = Field(description="microns per pixel of these tiles")
    size_px: int = Field(description="side at which the network sees a tile")
    tiles_digest: str = Field(description="manifest digest of the training tiles")
    train_cases: tuple[str, ...] = Field(
        description="digests of the names of the training cases, ascending, hashed since names may identify patients; "
        "includes those of the pretrained encoder and of the teacher"
    )
    teacher_digest: str | None = Field(None, description="digest of the teacher whose responses it learned from")
    teacher: str | None = Field(None, description="that teacher's kind and place; null: not recorded, or no teacher")
    histill: str = Field(description="version of the code that wrote the folder")
    val_cases: tuple[str, ...] = Field(
        (), description="digests of the validation cases by which it, its encoder or its teacher was selected"
    )
    taught_on: tuple[TaughtOn, ...] = Field(
        (), description="tile sets that it, its encoder and its teacher learned from; empty in cards of older versions"
    )
    unknown_teachers: tuple[str, ...] = Field(
        (), description="teachers whose training data are not on record, such as ONNX teachers and published weights"
    )

    width: int | None = Field(None, description="length of an encoder's embeddings; null: of any other model")
    taught_by: tuple[TaughtBy, ...] | None = Field(
        None,
        description="licensed teachers and published weights that it, its encoder and its teacher learned from; null "
        "in cards of older versions",
    )
    weights_sha256: str | None = Field(
        None, description="SHA-256 of model.safetensors; null in cards of older versions"
    )
    prefixes: tuple[int, ...] = Field(
        (), description="lengths to which an embedding can be cut: its first dimensions learned to serve by themselves"
    )

    shapes: dict[str, tuple[int, ...]] = Field(
        {}, description="shapes of the weights that pruning has made smaller than the encoder's own, by their names"
    )
    icc: Literal["srgb"] | None = Field(
        None, description="srgb: the training tiles were converted to it by the slides' color profiles"
    )

    @property
    def outputs(self) -> OutputSpec:
        """The kind and classes of the model's outputs."""
        return OutputSpec(self.kind, self.classes, self.multi_label, self.width)

    @property
    def teacher_name(self) -> str:
        """Its teacher in words, as far as that is on record."""
        digest = self.teacher_digest
        if digest is None:
            return ", ".join(self.unknown_teachers) or "none"
        return digest if self.teacher is None else f"{self.teacher} ({digest[:12]})"

    @property
    def mpp(self) -> float:
        """Microns per pixel of the network's input."""
        return self.tile_mpp * self.tile_px / self.size_px


def build(card: ModelCard) -> "Model":
    """Build the model of `card` with new weights: pixels [B, 3, S, S] in 0..255 -> logits [B, K, S, S] or [B, K].

    An encoder gives embeddings, [B, D].
    """
    import torch

    from histill.models.classifiers import build_classifier
    from histill.models.encoders import build_encoder
    from histill.models.pruning import shrink
    from histill.models.segmenter import build_segmenter

    classes = len(card.classes)
    model: Model
    if card.outputs.dense:
        model = build_segmenter(card.encoder, classes, card.decoder_channels, mean=card.mean, std=card.std)
    elif card.kind == "encoder":
        model = build_encoder(card.encoder, mean=card.mean, std=card.std)
    else:
        model = build_classifier(card.encoder, classes, mean=card.mean, std=card.std)
    shrink(model, card.shapes)
    return model.to(memory_format=torch.channels_last)  # a quarter faster on CPUs


def save(folder: str, model: "nn.Module", card: ModelCard) -> None:
    """Write weights and card, which gets their SHA-256, into an existing local folder."""
    save_weights(folder, model.state_dict(), card)


def save_weights(folder: str, weights: "Mapping[str, Tensor]", card: ModelCard) -> None:
    """The same for the weights by name."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    path = os.path.join(folder, WEIGHTS_NAME)
    save_file(tensors, path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with open(os.path.join(folder, CARD_NAME), "wb") as file:
        file.write(record_bytes(card.model_copy(update={"weights_sha256": digest})))


def resolve(uri: str, storage: Storage) -> str:
    """The model folder that `uri` refers to: itself, or the final model of the run folder at `uri`.

    This works for moved and copied run folders too.
    """
    if exists(join(uri, CARD_NAME), storage):
        return uri
    try:
        return read_record(FinishedRun, join(uri, FINISHED_NAME), storage).model_in(uri)
    except FileNotFoundError:
        raise InputError(
            f"{uri} is neither a model folder ({CARD_NAME} is missing) nor a finished run; name one of the two.",
            code="model-missing",
        ) from None


def read_card(uri: str, storage: Storage) -> ModelCard:
    """Read the card of the model folder `uri`. Raises InputError when it is missing or invalid."""
    try:
        return read_record(ModelCard, join(uri, CARD_NAME), storage)
    except FileNotFoundError:
        raise _no_model(uri, CARD_NAME) from None


def load(uri: str, storage: Storage) -> tuple["Model", ModelCard, str]:
    """Load the model in evaluation mode, its card, and its digest (SHA-256 over card and weights).

    Raises InputError when the weights are not safetensors, are not those that were saved, or do not fit the card.
    """
    from safetensors.torch import load as tensors_of

    card = read_card(uri, storage)
    try:
        data = read_bytes(join(uri, WEIGHTS_NAME), storage)
        weights = tensors_of(data)
    except FileNotFoundError:
        raise _no_model(uri, WEIGHTS_NAME) from None
    except safetensors.SafetensorError:
        raise InputError(
            f"{join(uri, WEIGHTS_NAME)} is not a safetensors file, and other formats are not loaded; export the model "
            "again.",
            code="weights-unreadable",
        ) from None
    if card.weights_sha256 is not None:
        check_file(WEIGHTS_NAME, data, card.weights_sha256, uri)
    model = build(card)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if len(str(error).splitlines()) > 1 else str(error)
        reason = textwrap.shorten(first, 200, placeholder=" ...").rstrip(".")
        raise InputError(
            f"the weights in {uri} do not fit its {CARD_NAME} ({reason}); save the two together.",
            code="weights-do-not-fit",
        ) from None
    return model.eval(), card, digest_of(card, data)


def check_like(card: ModelCard, header: "Header", tiles: str) -> None:
    """Raise InputError when the tile set at `tiles` differs in resolution or tile size from the training tiles."""
    if abs(card.tile_mpp / header.mpp - 1) > SAME_MPP or card.tile_px != header.tile_px:
        raise InputError(
            f"the model was trained on tiles of {card.tile_px} px at {card.tile_mpp:g} um/px and {tiles} has "
            f"{header.tile_px} px at {header.mpp:g}; cut the tiles like the training ones.",
            code="resolution-differs",
        )


def digest_of(card: ModelCard, weights: bytes) -> str:
    """SHA-256 over a model folder's card and the bytes of its weights: changes whenever the outputs could.

    Fields that older cards lack are left out when empty, so that models keep their digests; so is the SHA-256 of the
    weights, which tells nothing new.
    """
    later = ("val_cases", "taught_on", "unknown_teachers", "width", "prefixes", "teacher", "shapes", "icc")
    absent = {name for name in later if not getattr(card, name)}
    absent |= {"weights_sha256"} | ({"taught_by"} if card.taught_by is None else set())
    return hashlib.sha256(card.model_dump_json(exclude=absent).encode() + weights).hexdigest()


def _no_model(uri: str, missing: str) -> InputError:
    return InputError(
        f"{uri} is no model folder: {missing} is missing; name a finished run's folder, or a model's.",
        code="model-missing",
    )


def read_digest(uri: str, card: ModelCard, storage: Storage) -> str:
    """The digest of the model folder at `uri`, without building the model. Raises InputError without weights."""
    try:
        return digest_of(card, read_bytes(join(uri, WEIGHTS_NAME), storage))
    except FileNotFoundError:
        raise _no_model(uri, WEIGHTS_NAME) from None


def copy(source: str, target: str, storage: Storage) -> None:
    """Copy a model folder: weights first, so that a folder with a card is complete."""
    for name in (WEIGHTS_NAME, CARD_NAME):
        write_bytes(join(target, name), read_bytes(join(source, name), storage), storage)
