"""The lineage of a model: what it was trained on, inherited from its encoder and teacher."""

from histill.artifacts.model_folder import ModelCard, TaughtOn


def inherit(card: ModelCard, *ancestors: ModelCard, unknown: tuple[str, ...] = ()) -> ModelCard:
    """`card` with the lineage of its `ancestors` (encoder, teacher) added; their cards already include their own.

    `unknown` names further teachers whose training data are not on record.
    """
    cards = (card, *ancestors)
    return card.model_copy(
        update={
            "train_cases": tuple(sorted({case for each in cards for case in each.train_cases})),
            "val_cases": tuple(sorted({case for each in cards for case in each.val_cases})),
            "taught_on": tuple(dict.fromkeys(tiles for each in cards for tiles in tile_sets(each))),
            "unknown_teachers": tuple(
                dict.fromkeys((*(name for each in cards for name in each.unknown_teachers), *unknown))
            ),
        }
    )


def tile_sets(card: ModelCard) -> tuple[TaughtOn, ...]:
    """The tile sets that a model learned from; an old card only names its own, without a URI."""
    own = (TaughtOn(digest=card.tiles_digest),) if card.tiles_digest and not card.taught_on else ()
    return (*card.taught_on, *own)
