"""What a term of a loss is: its options, what it needs of a run, and a function of a batch's `LossInputs`."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from histill.losses.layers import ComparedLayers
from histill.strict import Strict

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs

Need = Literal["teacher", "labels", "maps", "gradients", "pixels", "tiles", "one_class"]
"""A teacher's logits; labels or masks; feature maps; a live teacher to differentiate; answers to pixels, or to whole
tiles; classes that exclude each other."""


def _zero_for_null(weight: Any) -> Any:
    return 0.0 if weight is None else weight


class Weighted(Strict):
    """What enters a loss with a weight."""

    weight: Annotated[float, BeforeValidator(_zero_for_null)] = Field(
        1.0, ge=0, description="factor of the term; 0 leaves it out, as null in place of the term does"
    )


class Term(Weighted):
    """A term of a loss.

    Configurations load it, and --help must answer at once: a term imports torch where it is called.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def __call__(self, inputs: "LossInputs") -> "Tensor":
        """The term's value for a batch, a float scalar: the mean over its valid rows, without the weight."""

    def choose_layers(self, own: Sequence[str], others: Sequence[str]) -> ComparedLayers:
        """The layers that it compares, of a student with `own` and a teacher with `others`, from fine to coarse."""
        return ComparedLayers()

    @property
    def queue_tiles(self) -> int | None:
        """How many earlier tiles' pooled teacher maps it wants in `LossInputs.queue`; None: that is not read."""
        return None
