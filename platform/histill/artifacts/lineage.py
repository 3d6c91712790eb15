"""Record what a model was trained on, handed on from encoder and teacher to student."""

from histill.artifacts.model_folder import ModelCard, TaughtOn


def inherit(card: ModelCard, *ancestors: ModelCard, unknown: tuple[str, ...] = ()) -> ModelCard:
    """`card` with what taught its `ancestors` (encoder, teacher), each of which has inherited already.

    `unknown` names further teachers whose own training nobody has on record.
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
    """The tile sets that taught a model; of a card of an older version its own, whose place is not on record."""
    own = (TaughtOn(digest=card.tiles_digest),) if card.tiles_digest and not card.taught_on else ()
    return (*card.taught_on, *own)
