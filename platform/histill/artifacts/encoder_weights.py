"""Read published encoder weights: safetensors with timm's tensor names."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import safetensors

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import read_bytes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EncoderWeights:
    """The tensors of a weights file, by name, and the SHA-256 of its bytes."""

    tensors: "dict[str, Tensor]"
    digest: str


def read_weights(uri: str, storage: Storage) -> EncoderWeights:
    """Read the weights file at `uri`. Raises InputError when it is missing or not a safetensors file."""
    from safetensors.torch import load

    try:
        data = read_bytes(uri, storage)
        return EncoderWeights(load(data), hashlib.sha256(data).hexdigest())
    except FileNotFoundError:
        raise InputError(
            f"encoder weights {uri} are missing; name a safetensors file, or leave weights out.", code="weights-missing"
        ) from None
    except safetensors.SafetensorError:
        raise InputError(
            f"encoder weights {uri} are not a safetensors file; other formats are not loaded, so convert them (timm "
            "publishes most of its weights as model.safetensors).",
            code="weights-unreadable",
        ) from None
