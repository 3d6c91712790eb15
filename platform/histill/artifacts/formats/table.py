"""The table of formats.

To add one, write a module with a function like `make_onnx`, and give it a line here and its name in `FormatName`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from histill.artifacts.formats.made import Made, Skipped
from histill.artifacts.formats.onnx import make_onnx
from histill.artifacts.formats.onnx_int8 import make_onnx_int8
from histill.artifacts.formats.openvino_int8 import make_openvino_int8
from histill.artifacts.formats.pt2 import make_pt2
from histill.artifacts.formats.smp import make_smp
from histill.artifacts.formats.subject import Subject
from histill.artifacts.formats.timm import make_timm
from histill.artifacts.formats.wsinfer import make_wsinfer
from histill.config.promote_model import FormatName


@dataclass(frozen=True)
class Format:
    """How a format is made."""

    make: Callable[[Subject], Made | Skipped]
    package: str | None = None  # what must be installed; the extra of histill that brings it has its name
    calibrated: bool = False  # whether it is made with training tiles


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(make_onnx),
    "pt2": Format(make_pt2),
    "onnx_int8": Format(make_onnx_int8, calibrated=True),
    "openvino_int8": Format(make_openvino_int8, package="openvino", calibrated=True),
    "timm": Format(make_timm),
    "smp": Format(make_smp),
    "wsinfer": Format(make_wsinfer),
}
