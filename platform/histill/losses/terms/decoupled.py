"""Decoupled knowledge distillation (Zhao et al., arXiv 2203.08679, equations 5 and 7)."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class Decoupled(Term):
    """Decoupled distillation: the target class (the label, else the teacher's), and the others among themselves."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "labels", "one_class"})
    temperature: float = Field(1.0, gt=0, description="softens teacher and student alike")
    target: float = Field(1.0, ge=0, description="weight of the target class against the rest")
    others: float = Field(1.0, ge=0, description="weight of the other classes among themselves")

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        import torch

        from histill.losses.logits import decoupled_kl

        assert inputs.teacher is not None
        assert inputs.target is not None
        target = torch.where(inputs.target >= 0, inputs.target, inputs.teacher.argmax(1))
        return decoupled_kl(
            inputs.student, inputs.teacher, target, inputs.valid, self.temperature, self.target, self.others
        )
