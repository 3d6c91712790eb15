"""Cross-entropy with the teacher's decisions as targets (the "hard" targets of Hinton et al., arXiv 1503.02531)."""

from typing import TYPE_CHECKING, ClassVar

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class HardCrossEntropy(Term):
    """Cross-entropy with the teacher's most probable class."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "one_class"})

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.logits import hard_cross_entropy

        assert inputs.teacher is not None
        return hard_cross_entropy(inputs.student, inputs.teacher, inputs.valid)
