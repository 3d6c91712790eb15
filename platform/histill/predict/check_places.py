"""Check what predictions are asked for before torch and Ray are loaded, which takes seconds."""

from histill.artifacts.model_folder import ModelCard, check_like, read_card, resolve
from histill.cluster.connect import works_here
from histill.config.engine import ON_CPUS, check_installed
from histill.config.predict_tiles import PredictConfig
from histill.errors import InputError
from histill.storage.control import probe
from histill.tiles.manifest import read_header
from histill.tiles.slide_files import check_existence


def check_sources(config: PredictConfig) -> None:
    """Raise InputError when the output cannot be written, or the tile set or a slide is missing."""
    probe(config.output, config.storage)
    if config.tiles is not None:
        read_header(config.tiles, config.storage)
    check_existence(config.slides, config.storage, here=works_here(in_process=config.workers.in_process))


def check_model(config: PredictConfig) -> None:
    """Raise InputError when there is no such model, it sees other tiles, or has no such outputs."""
    card = read_card(resolve(config.model, config.storage), config.storage)
    if config.tiles is not None:
        check_like(card, read_header(config.tiles, config.storage), config.tiles)
    _check_outputs(config, card)
    check_installed(config.engine)


def _check_outputs(config: PredictConfig, card: ModelCard) -> None:
    is_encoder = card.kind == "encoder"
    for key, made, by in (
        ("masks", card.outputs.dense, "a segmenter"),
        ("objects", card.outputs.dense, "a segmenter"),
        ("overlay_mpp", card.outputs.dense, "a segmenter"),
        ("heatmaps", not is_encoder, "a model with classes"),
    ):
        asked = getattr(config, key) and not type(config).model_fields[key].default
        if asked and not made:
            raise InputError(
                f"{key} are made by {by}, and {config.model} is {'an encoder' if is_encoder else 'a classifier'}; "
                f"leave {key} out.",
                code="option-not-applicable",
            )
    if config.engine in ON_CPUS and config.embeddings and not is_encoder:
        raise InputError(
            f"engine={config.engine} gives the classes of {config.model}, and its embeddings are torch's; leave engine "
            "out.",
            code="option-not-applicable",
        )
