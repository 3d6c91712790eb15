"""Squared distance of embeddings (FitNets' regression, Romero et al., arXiv 1412.6550, equation 3, on embeddings)."""

from typing import TYPE_CHECKING, ClassVar

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class EmbeddingMse(Term):
    """Mean squared distance of embeddings, the student's through a learned projection for each teacher."""

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "projections"})

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.embedding import average_teachers, squared_distance

        return average_teachers(
            inputs.embedding_weights,
            lambda name: squared_distance(inputs.projected_embeddings[name], inputs.embeddings[name], inputs.valid),
        )
