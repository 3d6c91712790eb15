"""An encoder as an `.onnx` file, with a JSON card of its inputs and of the width of its embeddings."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from histill.config.common import Storage
from histill.errors import InputError
from histill.licenses import License
from histill.outputs import OutputSpec
from histill.storage.records import Record
from histill.teachers.onnx_network import OnnxNetwork, read_card

KEY = "teacher.onnx_encoder"
_Above0 = Annotated[float, Field(gt=0)]


class OnnxEncoderCard(Record):
    """The encoder's inputs and output; stored next to `encoder.onnx` as `encoder.json`."""

    noun: ClassVar[str] = "the card of an ONNX encoder"
    remedy: ClassVar[str] = "it has the keys width, tile_mpp, tile_px, size_px, mean, std and, at will, license"

    width: int = Field(ge=1, description="of an embedding")
    tile_mpp: float = Field(gt=0, allow_inf_nan=False, description="microns per pixel of the tiles it was trained on")
    tile_px: int = Field(ge=1, description="side of these tiles in pixels")
    size_px: int = Field(ge=1, description="the network's input size for a whole tile, in pixels")
    mean: tuple[float, float, float] = Field(description="mean of RGB in 0..1, subtracted before the network")
    std: tuple[_Above0, _Above0, _Above0] = Field(description="standard deviation of RGB in 0..1; above 0")
    license: License | None = Field(None, description="the terms of its weights; null: not on record")


@dataclass(frozen=True)
class OnnxEncoder:
    """An encoder run by ONNX Runtime."""

    network: OnnxNetwork
    card: OnnxEncoderCard
    features: None = None

    @classmethod
    def load(cls, uri: str, storage: Storage, *, gpu: bool = False) -> "OnnxEncoder":
        """Load the `.onnx` file at `uri` and the card next to it.

        Raises InputError as `OnnxNetwork.load` does, and when the network does not answer with vectors of the card's
        width.
        """
        card = read_card(OnnxEncoderCard, uri, storage, KEY)
        network = OnnxNetwork.load(uri, card, storage, KEY, gpu=gpu)
        answer = network.answer_black()
        if answer.shape != (2, card.width):
            raise InputError(
                f"{uri} answers {list(answer.shape)} for 2 tiles of {card.size_px} px; [2, {card.width}] was expected, "
                "embeddings of its card's width: correct that, or export the network without what follows them.",
                code="onnx-unusable",
            )
        return cls(network, card)

    @property
    def outputs(self) -> OutputSpec:
        return OutputSpec("encoder", (), width=self.card.width)

    @property
    def mpp(self) -> float:
        return self.card.tile_mpp

    @property
    def digest(self) -> str:
        return self.network.digest

    @property
    def license(self) -> License | None:
        return self.card.license

    def sees(self, side_px: int) -> int:
        """`OnnxNetwork.sees`."""
        return self.network.sees(side_px)

    def respond(self, tiles: torch.Tensor) -> torch.Tensor:
        """Embeddings, float32 [B, D], of tiles or windows, uint8 [B, 3, S, S]."""
        return torch.from_numpy(self.network.answer(tiles, self.sees(tiles.shape[-1]))).to(tiles.device)


def load_teacher(uri: str, _tile_mpp: float, storage: Storage, *, gpu: bool = False) -> OnnxEncoder:
    """`OnnxEncoder.load`."""
    return OnnxEncoder.load(uri, storage, gpu=gpu)
