"""Cross-entropy with labels or masks; label smoothing after Szegedy et al., arXiv 1512.00567, section 7."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class CrossEntropy(Term):
    """Cross-entropy with labels or masks, where present; summed over classes for multi-label tiles."""

    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target that is spread over all classes")
    class_weights: bool = Field(
        False, description="weight classes by the inverse of their frequency, for one label a tile"
    )

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.logits import binary_cross_entropy, cross_entropy
        from histill.losses.padding import per_share

        assert inputs.target is not None
        if inputs.multi_label:
            return binary_cross_entropy(inputs.student, inputs.target, inputs.valid, self.smoothing)
        weights = inputs.class_weights if self.class_weights else None
        loss = cross_entropy(inputs.student, inputs.target, inputs.valid, weights, self.smoothing)
        return loss if inputs.labeled_pixels is None else per_share(loss, inputs.labeled_pixels)
