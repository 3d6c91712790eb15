"""An ONNX teacher: a segmentation network as an `.onnx` file, with a JSON card of its inputs and outputs."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from histill.config.common import Storage
from histill.errors import InputError
from histill.licenses import License
from histill.models.resample import resize_logits
from histill.outputs import OutputSpec
from histill.storage.records import Record
from histill.teachers.onnx_network import OnnxNetwork, card_uri, read_card

KEY = "teacher.onnx"
_FLOOR = 1e-6  # lower bound of probabilities before the logarithm
_Above0 = Annotated[float, Field(gt=0)]


class OnnxCard(Record):
    """The network's inputs and outputs; stored next to `teacher.onnx` as `teacher.json`."""

    noun: ClassVar[str] = "the card of an ONNX teacher"
    remedy: ClassVar[str] = (
        "it has the keys classes, tile_mpp, tile_px, size_px, mean, std, output and, at will, license"
    )

    classes: tuple[str, ...] = Field(min_length=2, description="names of the output channels, background first")
    tile_mpp: float = Field(gt=0, allow_inf_nan=False, description="microns per pixel of the tiles it was trained on")
    tile_px: int = Field(ge=1, description="side of these tiles in pixels")
    size_px: int = Field(ge=1, description="the network's input size for a whole tile, in pixels")
    mean: tuple[float, float, float] = Field(description="mean of RGB in 0..1, subtracted before the network")
    std: tuple[_Above0, _Above0, _Above0] = Field(description="standard deviation of RGB in 0..1; above 0")
    output: Literal["logits", "probabilities"] = Field(
        description="content of the output channels; a single channel is the second of two classes, before or after "
        "its sigmoid"
    )
    license: License | None = Field(None, description="the terms of its weights; null: not on record")


@dataclass(frozen=True)
class OnnxTeacher:
    """A segmenter run by ONNX Runtime."""

    network: OnnxNetwork
    card: OnnxCard
    features: None = None

    @classmethod
    def load(cls, uri: str, storage: Storage, *, gpu: bool = False) -> "OnnxTeacher":
        """Load the `.onnx` file at `uri` and the card next to it.

        Raises InputError as `OnnxNetwork.load` does, and when the network does not answer what the card says.
        """
        card = read_card(OnnxCard, uri, storage, KEY)
        teacher = cls(OnnxNetwork.load(uri, card, storage, KEY, gpu=gpu), card)
        teacher._check_answer()
        return teacher

    @property
    def outputs(self) -> OutputSpec:
        return OutputSpec("segmentation", self.card.classes)

    @property
    def license(self) -> License | None:
        return self.card.license

    @property
    def mpp(self) -> float:
        return self.card.tile_mpp

    @property
    def digest(self) -> str:
        return self.network.digest

    def sees(self, side_px: int) -> int:
        """`OnnxNetwork.sees`."""
        return self.network.sees(side_px)

    def respond(self, tiles: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [B, K, S, S], for tiles or windows, uint8 [B, 3, S, S]."""
        answer = torch.from_numpy(self.network.answer(tiles, self.sees(tiles.shape[-1])))
        return resize_logits(_as_logits(answer, self.card), tiles.shape[-1]).to(tiles.device)

    def _check_answer(self) -> None:
        uri, side, classes = self.network.uri, self.card.size_px, len(self.card.classes)
        answer = self.network.answer_black()
        channels = (1, classes) if classes == 2 else (classes,)
        sound = answer.ndim == 4 and len(answer) == 2 and answer.shape[2] == answer.shape[3]
        if not sound or answer.shape[1] not in channels:
            raise InputError(
                f"{uri} answers {list(answer.shape)} for 2 tiles of {side} px; [2, {classes}, side, side] was "
                f"expected, for the classes {', '.join(self.card.classes)} of its card.",
                code="onnx-unusable",
            )
        declared, held = self.card.output, _kind(answer)
        if held != declared and not (answer.shape[1] == 1 and declared == "logits"):  # a logit may lie in 0..1
            raise InputError(
                f"{uri} answers {held} and its card says output {declared!r}; correct {card_uri(uri)}.",
                code="onnx-unusable",
            )


def load_teacher(uri: str, _tile_mpp: float, storage: Storage, *, gpu: bool = False) -> OnnxTeacher:
    """`OnnxTeacher.load`."""
    return OnnxTeacher.load(uri, storage, gpu=gpu)


def _as_logits(answer: torch.Tensor, card: OnnxCard) -> torch.Tensor:
    """Logits [B, K, H, W] from the network's output: [B, K, H, W], or [B, 1, H, W] for two classes."""
    single = answer.shape[1] == 1
    if card.output == "probabilities":
        return (torch.cat([1 - answer, answer], dim=1) if single else answer).clamp_min(_FLOOR).log()
    return torch.cat([torch.zeros_like(answer), answer], dim=1) if single else answer


def _kind(answer: np.ndarray) -> str:
    """Whether `answer` is logits or probabilities: these are in 0..1 and, with several channels, sum to 1."""
    slack = 1e-3
    within = answer.min() >= -slack and answer.max() <= 1 + slack
    adds_up = answer.shape[1] == 1 or bool(np.abs(answer.sum(axis=1) - 1).max() <= slack)
    return "probabilities" if within and adds_up else "logits"
