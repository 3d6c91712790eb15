"""What to do about a slide that cannot be cut as asked, in the keys of the job at hand."""

from dataclasses import dataclass, replace

from histill.config.ingest_tiles import SlideSource


@dataclass(frozen=True)
class Remedies:
    """Next steps as they follow "look it up and " or a semicolon; `{mpp}` stands for the slide's um/px."""

    state_mpp: str
    coarser: str
    smaller_tile: str
    less_tissue: str
    no_tissue: str
    unreadable: str
    profile: str  # of a color profile that cannot be used
    fallback: str  # the key of the resolution of slides that do not record theirs


_OF_INGEST = Remedies(
    state_mpp="set slides.slide_mpp",
    coarser="set slides.mpp to {mpp:g} or more",
    smaller_tile="set a smaller tile_px or a finer slides.mpp",
    less_tissue="set a smaller slides.min_tissue",
    no_tissue="set slides.min_tissue=0 to cut it anyway",
    unreadable="replace them in place or raise the limit, and run it again, which keeps finished parts (with a changed "
    "index it starts over)",
    profile="leave out slides.icc to cut all slides as they are stored, or leave out the slide",
    fallback="slides.slide_mpp",
)
_OF_PREDICTION = Remedies(
    state_mpp="set slide_mpp",
    coarser="the model needs that resolution: take a slide scanned finer, or a model of {mpp:g} um/px or more",
    smaller_tile="the model needs tiles of that size: leave the slide out",
    less_tissue="set a smaller min_tissue",
    no_tissue="set min_tissue=0 to predict it anyway",
    unreadable="replace them or leave them out of slides, and run it again",
    profile="the model learned from converted tiles: leave the slide out",
    fallback="slide_mpp",
)
_OF_INDEX = replace(_OF_INGEST, state_mpp=f"{_OF_INGEST.state_mpp}, or the column mpp of the slide's row in the index")


def list_remedies(source: SlideSource | None) -> Remedies:
    """The remedies of the job that cuts `source`; None: of one that imports images."""
    if source is None:
        return _OF_INGEST
    if source.is_of_prediction:
        return _OF_PREDICTION
    return _OF_INGEST if source.index is None else _OF_INDEX
