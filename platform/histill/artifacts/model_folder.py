"""A model folder: `model.safetensors` and `model.json`, enough to build the model again anywhere.

No pickle is ever read: safetensors hold tensors and nothing that runs.
"""

import hashlib
import os
import textwrap
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import safetensors
from pydantic import Field

from histill.config.base import Strict
from histill.config.common import Storage
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.control import exists, read_bytes, write_bytes
from histill.storage.records import Record, read_record, record_bytes
from histill.storage.uris import join

if TYPE_CHECKING:
    from torch import nn

    from histill.models.transfer import Model
    from histill.tiles.manifest import Header

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"
FINISHED_NAME = "finished.json"
_SAME_MPP = 0.05  # relative difference of resolutions that are taken as one


class FinishedRun(Record):
    """What came of a run or a sweep; marks it as finished."""

    noun: ClassVar[str] = "the record of a finished run"
    remedy: ClassVar[str] = "name one of the run's checkpoints in its place"

    model: str = Field(description="folder of its final model")
    name: str | None = Field(None, description="of that folder within the run's; null: elsewhere, or not on record")
    metrics: dict[str, Any] = Field(description="of its last epoch")

    def model_in(self, uri: str) -> str:
        """The final model of the run whose folder is `uri`, also where that was moved or copied."""
        return join(uri, self.name) if self.name else self.model


class TaughtOn(Strict):
    """A tile set that a model was taught on."""

    digest: str = Field(description="manifest digest")
    uri: str | None = Field(None, description="where it lay; null: not on record")


class ModelCard(Record):
    """How to build the model, how to feed it, and what taught it."""

    noun: ClassVar[str] = "a model card"
    remedy: ClassVar[str] = "export the model again"

    kind: Literal["segmentation", "classification"] = "segmentation"
    multi_label: bool = Field(False, description="whether a classifier's classes do not exclude each other")
    encoder: str = Field(description="timm name of the encoder")
    decoder_channels: tuple[int, ...] = Field(description="of a segmenter; empty for a classifier")
    classes: tuple[str, ...] = Field(description="names of the outputs; background first, a boundary last")
    mean: tuple[float, float, float] = Field(description="of RGB in 0..1")
    std: tuple[float, float, float]
    tile_px: int = Field(description="side of the tiles it was trained on")
    tile_mpp: float = Field(description="microns per pixel of these tiles")
    size_px: int = Field(description="side at which the network sees a tile")
    tiles_digest: str = Field(description="manifest digest of the training tiles")
    train_cases: tuple[str, ...] = Field(
        description="digests of the names of the training cases, ascending; the names may be of patients. Those of the "
        "pretrained encoder and of the teacher are among them"
    )
    teacher_digest: str | None = Field(None, description="digest of the teacher whose responses it learned from")
    histill: str = Field(description="version of the code that wrote the folder")
    val_cases: tuple[str, ...] = Field(
        (), description="digests of the cases by which it, its encoder or its teacher was chosen: the validation splits"
    )
    taught_on: tuple[TaughtOn, ...] = Field(
        (), description="tile sets that it, its encoder and its teacher learned from; empty in cards of older versions"
    )
    unknown_teachers: tuple[str, ...] = Field(
        (), description="what taught it whose own training is not on record, as ONNX teachers and published weights"
    )

    @property
    def outputs(self) -> OutputSpec:
        """What the model answers."""
        return OutputSpec(self.kind, self.classes, self.multi_label)

    @property
    def mpp(self) -> float:
        """Microns per pixel of what the network sees."""
        return self.tile_mpp * self.tile_px / self.size_px


def build(card: ModelCard) -> "Model":
    """The model of `card`, with fresh weights: pixels [B, 3, S, S] in 0..255 -> logits [B, K, S, S], or [B, K]."""
    import torch

    from histill.models.classifiers import build_classifier
    from histill.models.segmenter import build_segmenter

    classes = len(card.classes)
    model: Model
    if card.outputs.dense:
        model = build_segmenter(card.encoder, classes, card.decoder_channels, mean=card.mean, std=card.std)
    else:
        model = build_classifier(card.encoder, classes, mean=card.mean, std=card.std)
    return model.to(memory_format=torch.channels_last)  # a quarter faster on CPUs


def save(folder: str, model: "nn.Module", card: ModelCard) -> None:
    """Write weights and card into an existing local folder."""
    from safetensors.torch import save_file

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, os.path.join(folder, WEIGHTS_NAME))
    with open(os.path.join(folder, CARD_NAME), "wb") as file:
        file.write(record_bytes(card))


def resolve(uri: str, storage: Storage) -> str:
    """The model folder that `uri` means: itself, or the final checkpoint of the run folder at `uri`.

    The run's own checkpoint, where its folder was moved or copied as well.
    """
    if exists(join(uri, CARD_NAME), storage):
        return uri
    try:
        return read_record(FinishedRun, join(uri, FINISHED_NAME), storage).model_in(uri)
    except FileNotFoundError:
        raise InputError(
            f"{uri} is neither a model folder ({CARD_NAME} is missing) nor a finished run; name one of the two."
        ) from None


def read_card(uri: str, storage: Storage) -> ModelCard:
    """The card in the model folder `uri`. Raises InputError when it is missing or of another form."""
    try:
        return read_record(ModelCard, join(uri, CARD_NAME), storage)
    except FileNotFoundError:
        raise _no_model(uri, CARD_NAME) from None


def load(uri: str, storage: Storage) -> tuple["Model", ModelCard, str]:
    """The model in evaluation mode, its card, and its digest (SHA-256 over card and weights).

    Raises InputError when the weights are not safetensors or do not fit the card.
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
            "again."
        ) from None
    model = build(card)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if len(str(error).splitlines()) > 1 else str(error)
        reason = textwrap.shorten(first, 200, placeholder=" ...").rstrip(".")
        raise InputError(
            f"the weights in {uri} do not fit its {CARD_NAME} ({reason}); save the two together."
        ) from None
    return model.eval(), card, digest_of(card, data)


def check_like(card: ModelCard, header: "Header", tiles: str) -> None:
    """Raises InputError when the tile set at `tiles` is not like the one that the model was trained on."""
    if abs(card.tile_mpp / header.mpp - 1) > _SAME_MPP or card.tile_px != header.tile_px:
        raise InputError(
            f"the model was trained on tiles of {card.tile_px} px at {card.tile_mpp:g} um/px and {tiles} has "
            f"{header.tile_px} px at {header.mpp:g}; cut the tiles like the training ones."
        )


def digest_of(card: ModelCard, weights: bytes) -> str:
    """SHA-256 over a model folder's card and the bytes of its weights: changes whenever its answers could.

    Fields that older cards have not are left out while they are empty, so that a model keeps its digest.
    """
    absent = {name for name in ("val_cases", "taught_on", "unknown_teachers") if not getattr(card, name)}
    return hashlib.sha256(card.model_dump_json(exclude=absent).encode() + weights).hexdigest()


def _no_model(uri: str, missing: str) -> InputError:
    return InputError(f"{uri} is no model folder: {missing} is missing; name a finished run's folder, or a model's.")


def read_digest(uri: str, card: ModelCard, storage: Storage) -> str:
    """The digest of the model folder at `uri` with its `card`; no model is built. Raises InputError without weights."""
    try:
        return digest_of(card, read_bytes(join(uri, WEIGHTS_NAME), storage))
    except FileNotFoundError:
        raise _no_model(uri, WEIGHTS_NAME) from None


def copy(source: str, target: str, storage: Storage) -> None:
    """Copy a model folder: weights first, so that a folder with a card is whole."""
    for name in (WEIGHTS_NAME, CARD_NAME):
        write_bytes(join(target, name), read_bytes(join(source, name), storage), storage)
