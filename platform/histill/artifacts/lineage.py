"""What taught a model, handed on from encoder and teacher to student, so that none of it is called unseen later."""

from histill.artifacts.model_folder import ModelCard, TaughtOn, read_card, resolve
from histill.config.common import Storage, Teacher
from histill.config.distill import DistillConfig
from histill.config.finetune import FinetuneConfig
from histill.config.runs import Network, PretrainConfig, RunConfig


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


def with_lineage(card: ModelCard, config: RunConfig, network: Network) -> ModelCard:
    """The card of a run's model with what its pretrained encoder, its weights and its teacher were taught on.

    Raises InputError when one of them is named and missing.
    """
    models, unknown = [], []
    if isinstance(config, FinetuneConfig | DistillConfig) and config.encoder is not None:
        models.append(config.encoder)
    if isinstance(config, PretrainConfig | DistillConfig):
        models += _model_of(config.teacher)
        unknown += [f"ONNX teacher {config.teacher.onnx}"] if config.teacher.onnx else []
    if network.weights is not None:
        unknown.append(f"encoder weights {network.weights}")
    cards = [_card(uri, config.storage) for uri in models]
    return inherit(card, *cards, unknown=tuple(unknown))


def _model_of(teacher: Teacher) -> list[str]:
    return [] if teacher.model is None else [teacher.model]


def _card(uri: str, storage: Storage) -> ModelCard:
    return read_card(resolve(uri, storage), storage)
