"""The base class of loss terms: options, needs, and a function of a batch's `LossInputs`."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from histill.losses.layers import ComparedLayers
from histill.strict import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs

Need = Literal[
    "teacher", "labels", "maps", "gradients", "pixels", "tiles", "one_class", "embeddings", "projections", "tokens"
]
"""A teacher's logits; labels or masks; feature maps; a live, differentiable teacher; outputs for pixels; outputs for
whole tiles; mutually exclusive classes; teachers of embeddings; the student's embedding projected to each teacher's
width; token maps of student and teachers."""


def _zero_for_null(weight: Any) -> Any:
    return 0.0 if weight is None else weight


class Weighted(Strict):
    """A part of a loss with a weight."""

    weight: Annotated[float, BeforeValidator(_zero_for_null)] = Field(
        1.0, ge=0, description="factor of the term; 0 leaves it out, as does null instead of the term"
    )


class Term(Weighted):
    """A term of a loss.

    Configurations load terms, and --help must be fast, so a term imports torch only inside its call.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def __call__(self, inputs: "LossInputs") -> "Tensor":
        """The term's value for a batch, a float scalar: the mean over its valid rows, without the weight."""

    def choose_layers(self, own: Sequence[str], others: Sequence[str]) -> ComparedLayers:
        """The layers to compare, of a student with layers `own` and a teacher with `others`, both fine to coarse."""
        return ComparedLayers()

    @property
    def queue_tiles(self) -> int | None:
        """Number of earlier tiles whose pooled teacher maps it needs in `LossInputs.queue`; None: it reads no queue."""
        return None
