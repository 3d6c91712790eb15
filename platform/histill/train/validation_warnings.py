"""What the last figures of a run give reason to doubt, in one line."""

from collections.abc import Mapping

_LEAST = 1e-4  # of the pixels: less foreground is as good as none


def doubt_validation(name: str, metrics: Mapping[str, float]) -> str | None:
    """A sentence where the validation of the run `name` found next to no foreground, or none that is shared."""
    decided, reference = metrics.get("val_foreground"), metrics.get("val_reference_foreground")
    if decided is None or reference is None:  # a classifier's
        return None
    if reference < _LEAST:
        return (
            f"the masks or the teacher that {name} was validated against mark {reference:.3%} of the pixels, so its "
            "Dice says nothing: look at the slides' resolution, and at the shares that jobs/cache_responses.py tells."
        )
    if decided < _LEAST:
        return (
            f"{name} marks {decided:.3%} of the validation's pixels where its reference marks {reference:.1%}: it has "
            "learned nothing yet, so train it longer, or look at what it learned from (jobs/cache_responses.py)."
        )
    if metrics.get("val_dice") == 0:
        return (
            f"nothing of what {name} marks in the validation ({decided:.1%} of the pixels) is marked by its reference "
            f"({reference:.1%}): look whether images and masks belong together."
        )
    return None
