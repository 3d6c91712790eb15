"""Check that a model is there and made for a tile set before torch is loaded, which takes seconds."""

from histill.artifacts.model_folder import CARD_NAME, FINISHED_NAME, ModelCard, check_like, read_card, resolve
from histill.config.common import Storage
from histill.storage.control import exists
from histill.storage.uris import join
from histill.tiles.manifest import Header

HUB_CONFIG_NAME = "config.json"


def is_timm_folder(uri: str, storage: Storage) -> bool:
    """Whether `uri` is a folder in the form of the Hugging Face hub, and neither a model folder nor a run."""
    is_ours = any(exists(join(uri, name), storage) for name in (CARD_NAME, FINISHED_NAME))
    return not is_ours and exists(join(uri, HUB_CONFIG_NAME), storage)


def check_model(uri: str, header: Header, tiles: str, storage: Storage) -> ModelCard | None:
    """The card of the model at `uri`; None of a registered model, which is not fetched yet, and of a timm folder.

    Raises InputError when there is no model, or it sees other tiles than those of the set at `tiles`.
    """
    if uri.startswith("models:") or is_timm_folder(uri, storage):
        return None
    card = read_card(resolve(uri, storage), storage)
    check_like(card, header, tiles)
    return card
