"""Distance of Grad-CAM maps (del Amor et al., arXiv 2401.06010; Grad-CAM: Selvaraju et al., arXiv 1610.02391)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.layers import ComparedLayers
from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class Attention(Term):
    """Distance of Grad-CAM maps of the teacher's most probable class."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "maps", "gradients", "tiles"})
    student_layer: str | None = Field(None, description="layer of the student; null: its last")
    teacher_layer: str | None = Field(None, description="layer of the teacher; null: its last")

    def choose_layers(self, own: Sequence[str], others: Sequence[str]) -> ComparedLayers:
        return ComparedLayers(raw=((self.student_layer or own[-1], self.teacher_layer or others[-1]),))

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        import torch

        from histill.losses.feature import attention_distance, grad_cam

        assert inputs.teacher is not None
        own, others = inputs.layers.last
        chosen = inputs.teacher.argmax(1, keepdim=True)
        student, teacher = (
            grad_cam(each, torch.autograd.grad(logits.gather(1, chosen).sum(), each, create_graph=graph)[0])
            for each, logits, graph in (
                (inputs.student_maps[self.student_layer or own], inputs.student, True),
                (inputs.teacher_maps[self.teacher_layer or others], inputs.teacher, False),
            )
        )
        return attention_distance(student, teacher, inputs.valid)
