"""Cross-entropy with the teacher's softened probabilities (Hinton et al., arXiv 1503.02531, section 2)."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class SoftCrossEntropy(Term):
    """Cross-entropy with the teacher's softened probabilities."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "one_class"})
    temperature: float = Field(1.0, gt=0, description="softens teacher and student alike")

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.logits import soft_cross_entropy

        assert inputs.teacher is not None
        return soft_cross_entropy(inputs.student, inputs.teacher, inputs.valid, self.temperature)
