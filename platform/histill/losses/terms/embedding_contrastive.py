"""InfoNCE of embeddings over a queue of the teacher's (van den Oord et al., arXiv 1807.03748; CompRess: 2010.14713)."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class EmbeddingContrastive(Term):
    """InfoNCE between projected embeddings and each teacher's, with a queue of the teacher's for other tiles."""

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "projections"})
    temperature: float = Field(0.07, gt=0, description="sharpens the comparison")
    queue: int = Field(1024, ge=0, description="earlier tiles that each worker keeps")

    @property
    def queue_tiles(self) -> int:
        return self.queue

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.embedding import average_teachers
        from histill.losses.relational import info_nce

        return average_teachers(
            inputs.embedding_weights,
            lambda name: info_nce(
                inputs.projected_embeddings[name],
                inputs.embeddings[name],
                inputs.embedding_queues[name],
                inputs.valid,
                self.temperature,
            ),
        )
