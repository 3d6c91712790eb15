"""The card of a nuclei network: what it is fed with, and what its answers are."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from histill.licenses import License
from histill.outputs import OutputSpec
from histill.storage.records import Record

_Above0 = Annotated[float, Field(gt=0)]
_Percent = Annotated[float, Field(ge=0, le=100)]
Method = Literal["hovernet", "stardist", "cellpose", "labels"]


@dataclass(frozen=True)
class Role:
    """An output that a method needs: its channels, None for any number of them."""

    channels: int | None
    required: bool = True


ROLES: dict[Method, dict[str, Role]] = {
    "hovernet": {"nucleus": Role(2), "distances": Role(2), "types": Role(None, required=False)},
    "stardist": {"probability": Role(1), "rays": Role(None)},
    "cellpose": {"flows": Role(3)},
    "labels": {"labels": Role(None)},
}


class OnnxNucleiCard(Record):
    """The network's input and outputs; stored next to `nuclei.onnx` as `nuclei.json`."""

    noun: ClassVar[str] = "the card of a nuclei network"
    remedy: ClassVar[str] = (
        "it has the keys classes, tile_mpp, window_px, method, outputs, and at will margin_px, stride, mean and std or "
        "percentiles, channels_last, activated, threshold, boundary_px and license"
    )

    classes: tuple[str, ...] = Field(
        min_length=2,
        description="background first, then the types of nuclei; boundary last, for students that separate nuclei",
    )
    tile_mpp: float = Field(gt=0, allow_inf_nan=False, description="microns per pixel that it was trained on")
    window_px: int = Field(ge=1, description="side of the network's input")
    margin_px: int = Field(
        0, ge=0, description="pixels along each edge of a window for which it has no answer, or none that is used"
    )
    stride: int = Field(1, ge=1, description="pixels of the input for each pixel of its answers")
    mean: tuple[float, float, float] = Field((0.0, 0.0, 0.0), description="of RGB in 0..1, subtracted before it")
    std: tuple[_Above0, _Above0, _Above0] = Field(
        (1.0, 1.0, 1.0), description="of RGB in 0..1, by which it is divided; 0.0039216 for a network that takes 0..255"
    )
    percentiles: tuple[_Percent, _Percent] | None = Field(
        None, description="of each channel of a tile, which become 0 and 1 instead, such as [1, 99.8]"
    )
    channels_last: bool = Field(False, description="whether images are [batch, height, width, channels] in and out")
    method: Method = Field(description="how its answers become nuclei")
    outputs: dict[str, str] = Field(
        description="the name of the output for each role: nucleus, distances and types of hovernet (np, hv, tp); "
        "probability and rays of stardist; flows of cellpose (y, x, then the logit of a cell); labels"
    )
    activated: bool = Field(False, description="whether nucleus, types and probability are probabilities, not logits")
    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which stardist considers a polygon")
    boundary_px: int = Field(2, ge=1, description="width of the boundary inside each nucleus, if it is a class")
    license: License | None = Field(None, description="the terms of its weights; null: not on record")

    @model_validator(mode="after")
    def _fits_together(self) -> "OnnxNucleiCard":
        roles = ROLES[self.method]
        required = [name for name, role in roles.items() if role.required]
        if not set(required) <= self.outputs.keys() <= roles.keys():
            raise ValueError(
                f"outputs names {', '.join(self.outputs) or 'nothing'}; {self.method} has {', '.join(roles)}, and "
                f"needs {', '.join(required)}"
            )
        if self.step_px <= 0 or self.step_px % self.stride or self.margin_px % self.stride:
            raise ValueError(
                f"window_px {self.window_px} without margin_px {self.margin_px} on each side is {self.step_px}; it and "
                f"the margin must be multiples of stride {self.stride}, and it above 0"
            )
        if len(self.types) > 1 and "types" not in self.outputs:
            raise ValueError(f"classes names {len(self.types)} types of nuclei and outputs has no types; name one type")
        return self

    @property
    def spec(self) -> OutputSpec:
        return OutputSpec("segmentation", self.classes)

    @property
    def types(self) -> tuple[str, ...]:
        """The types of nuclei."""
        return self.spec.scored[1:]

    @property
    def step_px(self) -> int:
        """The side of the part of a window for which answers are used."""
        return self.window_px - 2 * self.margin_px
