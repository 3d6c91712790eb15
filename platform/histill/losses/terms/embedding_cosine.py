"""Cosine distance of embeddings, as students of pathology foundation models learn (H0-mini: arXiv 2501.16239)."""

from typing import TYPE_CHECKING, ClassVar

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class EmbeddingCosine(Term):
    """Cosine distance of embeddings, the student's through a learned projection for each teacher."""

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "projections"})

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.embedding import average_teachers, cosine_distance

        return average_teachers(
            inputs.embedding_weights,
            lambda name: cosine_distance(inputs.projected_embeddings[name], inputs.embeddings[name], inputs.valid),
        )
