"""Soft Dice loss against masks (Milletari et al., arXiv 1606.04797, section 3)."""

from typing import TYPE_CHECKING, ClassVar

from histill.losses.term import Need, Term

if TYPE_CHECKING:
    from torch import Tensor

    from histill.losses.inputs import LossInputs


class Dice(Term):
    """Soft Dice loss against masks, the mean over tiles with labeled pixels."""

    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "pixels"})

    def __call__(self, inputs: "LossInputs") -> "Tensor":
        import torch.nn.functional as F

        from histill.losses.logits import soft_dice
        from histill.losses.padding import per_share

        assert inputs.target is not None
        one_hot = F.one_hot(inputs.target.clamp_min(0), inputs.student.shape[1]).movedim(-1, 1).float()
        loss = soft_dice(inputs.student, one_hot, inputs.valid, known=inputs.target >= 0)
        return loss if inputs.labeled_tiles is None else per_share(loss, inputs.labeled_tiles)
