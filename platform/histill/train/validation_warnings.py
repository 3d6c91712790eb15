"""One-line warnings about implausible validation results of a finished run."""

from collections.abc import Mapping

_LEAST = 1e-4  # share of the pixels below which foreground counts as none


def doubt_validation(name: str, metrics: Mapping[str, float]) -> str | None:
    """A warning if the validation of run `name` has next to no foreground or no overlap with the reference, or None."""
    decided, reference = metrics.get("val_foreground"), metrics.get("val_reference_foreground")
    if decided is None or reference is None:  # a classifier
        return None
    if reference < _LEAST:
        return (
            f"the masks or the teacher that {name} was validated against mark {reference:.3%} of the pixels, so its "
            "Dice means nothing: check the slides' resolution, and the shares that histill cache prints."
        )
    if decided < _LEAST:
        return (
            f"{name} marks {decided:.3%} of the validation's pixels where its reference marks {reference:.1%}: it has "
            "learned nothing yet, so train it longer, or check what it learns from (histill cache)."
        )
    if metrics.get("val_dice") == 0:
        return (
            f"nothing of what {name} marks in the validation ({decided:.1%} of the pixels) is marked by its reference "
            f"({reference:.1%}): check that images and masks belong together."
        )
    return None
