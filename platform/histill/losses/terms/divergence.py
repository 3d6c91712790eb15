"""KL divergence of the softened outputs (DiPalma et al., arXiv 2101.04170; multi-label: arXiv 2308.06453)."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class Divergence(Term):
    """KL divergence of the softened outputs; summed over classes for multi-label tiles."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})
    temperature: float = Field(1.0, gt=0, description="softens teacher and student alike")

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.logits import bernoulli_kl, kl_divergence

        assert inputs.teacher is not None
        divergence = bernoulli_kl if inputs.multi_label else kl_divergence
        return divergence(inputs.student, inputs.teacher, inputs.valid, self.temperature)
