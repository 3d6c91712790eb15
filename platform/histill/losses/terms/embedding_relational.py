"""Relational distillation on embeddings: distances and angles between tiles (Park et al., arXiv 1904.05068)."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class EmbeddingRelational(Term):
    """Distances and angles between the embeddings of a batch's tiles, without a projection."""

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings"})
    distances: float = Field(1.0, ge=0, description="weight of the distances")
    angles: float = Field(2.0, ge=0, description="weight of the angles; memory grows with the cube of a worker's batch")

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.embedding import average_teachers
        from histill.losses.relational import angle_relation, distance_relation

        own = inputs.embedding
        assert own is not None

        def relation(name: str) -> "Tensor":
            others = inputs.embeddings[name]
            distances = distance_relation(own, others, inputs.valid)
            if not self.angles:
                return self.distances * distances
            return self.distances * distances + self.angles * angle_relation(own, others, inputs.valid)

        return average_teachers(inputs.embedding_weights, relation)
