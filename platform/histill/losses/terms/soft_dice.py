"""Soft Dice loss against the teacher's probabilities (Milletari et al., arXiv 1606.04797, section 3)."""

from typing import TYPE_CHECKING, ClassVar

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class SoftDice(Term):
    """Soft Dice loss against the teacher's pixel probabilities."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "pixels"})

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.logits import soft_dice

        assert inputs.teacher is not None
        return soft_dice(inputs.student, inputs.teacher.softmax(1), inputs.valid)
