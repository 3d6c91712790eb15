"""Pretrained weights of an encoder alone, as timm and the model hubs publish them: safetensors by timm's names."""

from typing import TYPE_CHECKING

import safetensors

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import read_bytes

if TYPE_CHECKING:
    from torch import Tensor


def read_weights(uri: str, storage: Storage) -> dict[str, "Tensor"]:
    """The tensors in the file `uri`, by name. Raises InputError when it is missing or no safetensors file."""
    from safetensors.torch import load

    try:
        return load(read_bytes(uri, storage))
    except FileNotFoundError:
        raise InputError(f"encoder weights {uri} are missing; name a safetensors file, or leave weights out.") from None
    except safetensors.SafetensorError:
        raise InputError(
            f"encoder weights {uri} are not a safetensors file; other formats are not loaded, so convert them (timm "
            "publishes most of its weights as model.safetensors)."
        ) from None
