"""Smooth L1 distance of embeddings, as AM-RADIO has it beside the cosine (Ranzinger et al., arXiv 2312.06709)."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class EmbeddingSmoothL1(Term):
    """Smooth L1 distance of embeddings, the student's through a learned projection for each teacher."""

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "projections"})
    beta: float = Field(1.0, gt=0, description="difference at which it turns from squared to absolute, by dimension")

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.embedding import average_teachers, smooth_l1_distance

        return average_teachers(
            inputs.embedding_weights,
            lambda name: smooth_l1_distance(
                inputs.projected_embeddings[name], inputs.embeddings[name], inputs.valid, self.beta
            ),
        )
