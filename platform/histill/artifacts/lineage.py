"""The lineage of a model: what it was trained on and by whom, inherited from its encoder and teacher."""

from collections.abc import Mapping

from histill.artifacts.model_folder import ModelCard, TaughtBy, TaughtOn
from histill.errors import InputError
from histill.licenses import License


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
            "taught_by": tuple(dict.fromkeys(teacher for each in cards for teacher in list_teachers(each))),
        }
    )


def tile_sets(card: ModelCard) -> tuple[TaughtOn, ...]:
    """The tile sets that a model learned from; an old card only names its own, without a URI."""
    own = (TaughtOn(digest=card.tiles_digest),) if card.tiles_digest and not card.taught_on else ()
    return (*card.taught_on, *own)


def list_teachers(card: ModelCard) -> tuple[TaughtBy, ...]:
    """The licensed teachers and published weights that a model learned from.

    A card of an older version has no licenses: they are not on record for the teachers that it names.
    """
    if card.taught_by is not None:
        return card.taught_by
    names = card.unknown_teachers
    if card.teacher_digest is not None and not card.taught_on:  # so old that it does not tell kinds of teachers apart
        names = (*names, f"teacher {card.teacher_digest[:12]}")
    return tuple(TaughtBy(name=name) for name in names)


def recall_licenses(now: tuple[TaughtBy, ...], before: tuple[TaughtBy, ...]) -> tuple[TaughtBy, ...]:
    """`now`, with the license of `before` for each teacher of which it is not on record now what that allows."""
    known = {each.name: each for each in before if _is_known(each)}
    return tuple(each if _is_known(each) else known.get(each.name, each) for each in now)


def _is_known(teacher: TaughtBy) -> bool:
    return teacher.license is not None and teacher.license.commercial is not None


def state_licenses(card: ModelCard, stated: Mapping[str, License]) -> tuple[TaughtBy, ...]:
    """What taught the model of `card`, with the licenses that are `stated` by name in place of those on record.

    Raises InputError for a name that did not teach it.
    """
    teachers = list_teachers(card)
    names = [each.name for each in teachers]
    for name in stated:
        if name not in names:
            known = f"{', '.join(map(repr, names))} taught it: name one of these" if names else "leave it out"
            raise InputError(
                f"gates.license.stated names {name!r}, which has not taught the model; {known}.",
                code="config-wrong-value",
            )
    return tuple(each.model_copy(update={"license": stated.get(each.name, each.license)}) for each in teachers)
