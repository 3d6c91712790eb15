"""Distance of feature maps (L_feat of DiPalma et al., arXiv 2101.04170)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from histill.losses.layers import ComparedLayers, Resize
from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class Features(Term):
    """Distance of feature maps; the student's goes through a learned projection where widths differ."""

    needs: ClassVar[frozenset[Need]] = frozenset({"maps"})
    student_layer: str | None = Field(None, description="layer of the student, by its timm name; null: its last")
    teacher_layer: str | None = Field(None, description="layer of the teacher; null: its last")
    norm: Literal["l1", "l2"] = Field("l2", description="absolute or squared differences")
    resize: Resize = Field("half_max_half_bicubic", description="how the teacher's map is resized to the student's")

    def choose_layers(self, own: Sequence[str], others: Sequence[str]) -> ComparedLayers:
        return ComparedLayers(projected=((self.student_layer or own[-1], self.teacher_layer or others[-1]),))

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.feature import pair_distance

        own, others = inputs.layers.last
        pair = (self.student_layer or own, self.teacher_layer or others)
        return pair_distance(inputs, pair, self.norm, self.resize)
