"""Relational distillation by distances and angles between tiles (Park et al., arXiv 1904.05068, section 3.2)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.layers import ComparedLayers
from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class Relational(Term):
    """Distances and angles between the pooled last maps of a batch's tiles."""

    needs: ClassVar[frozenset[Need]] = frozenset({"maps"})
    distances: float = Field(1.0, ge=0, description="weight of the distances")
    angles: float = Field(2.0, ge=0, description="weight of the angles; memory grows with the cube of a worker's batch")

    def choose_layers(self, own: Sequence[str], others: Sequence[str]) -> ComparedLayers:
        return ComparedLayers(raw=((own[-1], others[-1]),))

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.relational import angle_relation, distance_relation

        layer, other = inputs.layers.last
        own, others = inputs.student_maps[layer].mean((2, 3)), inputs.teacher_maps[other].mean((2, 3))
        distances = distance_relation(own, others, inputs.valid)
        return self.distances * distances + self.angles * angle_relation(own, others, inputs.valid)
