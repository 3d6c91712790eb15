"""InfoNCE between pooled feature maps (van den Oord et al., arXiv 1807.03748, equation 4; MoMA: arXiv 2308.16561)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.layers import ComparedLayers
from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class Contrastive(Term):
    """InfoNCE between the pooled last maps, with a queue of the teacher's pooled maps of earlier tiles."""

    needs: ClassVar[frozenset[Need]] = frozenset({"maps"})
    temperature: float = Field(0.07, gt=0, description="divides the similarities; lower is sharper")
    queue: int = Field(1024, ge=0, description="length of each worker's queue, in tiles")

    @property
    def queue_tiles(self) -> int:
        return self.queue

    def choose_layers(self, own: Sequence[str], others: Sequence[str]) -> ComparedLayers:
        return ComparedLayers(projected=((own[-1], others[-1]),))

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.relational import info_nce

        assert inputs.queue is not None
        last = inputs.layers.last
        query, key = (each.mean((2, 3)) for each in (inputs.projected[last], inputs.teacher_maps[last[1]]))
        return info_nce(query, key, inputs.queue, inputs.valid, self.temperature)
