"""What a teacher is, and how the one of a configuration is made."""

from typing import TYPE_CHECKING, Protocol

from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.errors import InputError

if TYPE_CHECKING:
    import torch


class Teacher(Protocol):
    """A frozen source of responses.

    `classes` names its output channels, background first; `digest` changes whenever its answers could; `mpp` is the
    resolution that it was made for, None when it adapts to any.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def digest(self) -> str: ...
    @property
    def mpp(self) -> float | None: ...

    def respond(self, tiles: "torch.Tensor") -> "torch.Tensor":
        """Logits, float32 [B, K, H, W], for tiles, uint8 [B, 3, H, W]; a tile's answer does not depend on its batch."""
        ...


def load_teacher(config: TeacherConfig, tile_mpp: float, storage: Storage) -> Teacher:
    """The teacher of `config` for tiles at `tile_mpp`.

    Raises InputError when a network teacher was trained at another resolution (more than 5 % apart).
    """
    if config.classical:
        from histill.teachers.classical import ClassicalTeacher

        return ClassicalTeacher(tile_mpp)
    from histill.teachers.network import NetworkTeacher

    teacher = NetworkTeacher.load(str(config.model), storage)
    if abs(teacher.mpp / tile_mpp - 1) > 0.05:
        raise InputError(
            f"teacher {config.model} was trained on tiles of {teacher.mpp:g} um/px and the tile set has {tile_mpp:g}; "
            "cut the tiles at the teacher's resolution."
        )
    return teacher
