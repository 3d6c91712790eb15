"""The teacher interface, and loading the teacher that a configuration names."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from histill.artifacts.lineage import list_teachers
from histill.artifacts.model_folder import TaughtBy, read_card, resolve
from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.errors import InputError
from histill.licenses import License
from histill.outputs import OutputSpec

if TYPE_CHECKING:
    import torch

_MPP_TOLERANCE = 0.05
TOKENS = "tokens"
"""The layer of a teacher of embeddings with its patch tokens after the last norm, or a CNN's last feature map."""


class FeatureMaps(Protocol):
    """A teacher's feature maps, with its logits."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Channels of each layer, from the finest to the coarsest."""
        ...

    def map_shape(self, layer: str, side_px: int) -> tuple[int, int, int]:
        """The shape [C, h, w] of the map of `layer` for tiles or windows of `side_px`.

        Raises InputError, naming the existing layers, when there is no such layer.
        """
        ...

    def respond_with_maps(
        self, tiles: "torch.Tensor", layers: tuple[str, ...]
    ) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
        """`Teacher.respond` of `tiles`, and the maps [B, C, h, w] of `layers`."""
        ...

    def forward(
        self, seen: "torch.Tensor", layers: tuple[str, ...], *, graph: bool
    ) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
        """Logits and the maps of `layers` for tiles at the network's input size, uint8 [B, 3, S, S].

        Logits are [B, K] or [B, K, S, S]; with `graph` they are differentiable with respect to the maps.
        """
        ...


class Teacher(Protocol):
    """A frozen source of responses, with the same inputs and outputs whatever its implementation.

    Input: raw decoded pixels of tiles or windows at `mpp`; the teacher resizes and normalizes them itself. Output:
    logits of each pixel, or of the tile, over the classes of `outputs`, never probabilities.
    """

    @property
    def outputs(self) -> OutputSpec:
        """The kind and classes of its logits."""
        ...

    @property
    def mpp(self) -> float | None:
        """Microns per pixel of the tiles that it was trained on; None when it adapts to any."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256, 64 hex digits, that changes whenever its responses could."""
        ...

    @property
    def license(self) -> License | None:
        """Its license, if it is somebody else's work and that is on record."""
        ...

    @property
    def features(self) -> FeatureMaps | None:
        """Its feature maps, if it exposes any."""
        ...

    def sees(self, side_px: int) -> int:
        """Its input size, in pixels, for a tile or window of `side_px`.

        Raises InputError when it cannot take that side.
        """
        ...

    def respond(self, tiles: "torch.Tensor") -> "torch.Tensor":
        """Logits, float32 [B, K, S, S] or, for whole tiles, [B, K], for tiles, uint8 [B, 3, S, S].

        A tile's logits do not depend on the rest of its batch.
        """
        ...


def load_teacher(config: TeacherConfig, tile_mpp: float, storage: Storage, *, gpu: bool = False) -> Teacher:
    """Load the teacher of `config` for tiles at `tile_mpp`, on the GPU if `gpu`.

    Nothing that is loaded can execute code: weights are safetensors, graphs are ONNX. The classical teacher always runs
    on the CPU.

    Raises InputError when its files are missing or invalid, or when its resolution differs by more than 5 %.
    """
    teacher: Teacher = import_module(f"histill.teachers.{config.kind.module}").load_teacher(
        config.value, tile_mpp, storage, gpu=gpu
    )
    if teacher.mpp is not None and abs(teacher.mpp / tile_mpp - 1) > _MPP_TOLERANCE:
        raise InputError(
            f"teacher {config.value} was trained on tiles of {teacher.mpp:g} um/px and the tile set has {tile_mpp:g}; "
            "cut the tiles at the teacher's resolution.",
            code="resolution-differs",
        )
    return teacher


def find_licensed(config: TeacherConfig, teacher: Teacher, storage: Storage) -> tuple[TaughtBy, ...]:
    """Whose licenses a student of `teacher`, which `config` names, inherits: its own, or those of its card."""
    match config.kind.trained_on:
        case "nothing":
            return ()
        case "its card":
            return list_teachers(read_card(resolve(config.value, storage), storage))
        case "unknown":
            return (TaughtBy(name=config.label, license=teacher.license),)
