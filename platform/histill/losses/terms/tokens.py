"""Dense distillation of patch tokens, as of DINOv2's students (Oquab et al., arXiv 2304.07193, section 5)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from histill.losses.layers import Resize
from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class Tokens(Term):
    """Distance of the student's last feature map, through a learned projection, from each teacher's patch tokens.

    Each channel of the teacher's is centered over the batch: what all tokens share would hide how they differ.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"embeddings", "tokens"})
    distance: Literal["cosine", "mse"] = Field("cosine", description="of the tokens of one place")
    resize: Resize = Field("area", description="of the teacher's tokens to the student's map")

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        from histill.losses.embedding import average_teachers, center_channels, cosine_distance, squared_distance
        from histill.losses.feature import resize_map

        distance = cosine_distance if self.distance == "cosine" else squared_distance

        def apart(name: str) -> "Tensor":
            own = inputs.projected_tokens[name]
            others = resize_map(inputs.tokens[name], own.shape[-2], own.shape[-1], self.resize)
            return distance(own, center_channels(others, inputs.valid), inputs.valid)

        return average_teachers({name: inputs.embedding_weights[name] for name in inputs.tokens}, apart)
