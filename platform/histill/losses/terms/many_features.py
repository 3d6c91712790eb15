"""Feature distances to several teacher layers, with learned weights (Javed et al., doi 10.1109/JBHI.2023.3237749)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from histill.losses.layers import ComparedLayers, Resize
from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class ManyFeatures(Term):
    """Distance of one feature map of the student to several of the teacher's, with learned weights."""

    needs: ClassVar[frozenset[Need]] = frozenset({"maps"})
    student_layer: str | None = Field(None, description="layer of the student; null: its last")
    teacher_layers: tuple[str, ...] | None = Field(
        None, min_length=1, description="layers of the teacher; null: its last two"
    )
    norm: Literal["l1", "l2"] = Field("l2", description="absolute or squared differences")
    resize: Resize = Field("half_max_half_bicubic", description="how the teacher's map is resized to the student's")

    def choose_layers(self, own: Sequence[str], others: Sequence[str]) -> ComparedLayers:
        layer = self.student_layer or own[-1]
        return ComparedLayers(mixed=tuple((layer, other) for other in self.teacher_layers or others[-2:]))

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        import torch

        from histill.losses.feature import mix_distances, pair_distance

        assert inputs.mixture is not None
        distances = [pair_distance(inputs, pair, self.norm, self.resize) for pair in inputs.layers.mixed]
        return mix_distances(torch.stack(distances), inputs.mixture)
