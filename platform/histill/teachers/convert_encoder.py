"""Write published weights of an encoder as a folder that `timm_encoder` reads.

The only place where a file of torch's is read, and with `weights_only`, so that what is no tensor is refused: a pickle
may run any code.
"""

import io
import json
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from histill.config.common import Storage
from histill.config.convert_encoder import ConvertConfig
from histill.errors import InputError
from histill.models.segmenter import check_encoder
from histill.storage.control import exists, read_bytes, write_bytes, write_json
from histill.storage.uris import beside, join
from histill.teachers.encoder_folder import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    HubConfig,
    check_weights,
    outline,
    read_config,
)
from histill.teachers.encoder_names import name_as_timm
from histill.teachers.encoder_presets import EncoderPreset, find_preset

SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")


def convert_encoder(config: ConvertConfig) -> HubConfig:
    """Write the folder `config.output`; the config that it has. Its file of weights comes first.

    Raises InputError when the weights hold anything but tensors, or do not fit the architecture one to one.
    """
    preset = None if config.preset is None else find_preset(config.preset)
    hub = _describe(config, preset)
    weights = name_as_timm(read_checkpoint(config.weights, config.storage))
    network = outline(hub)
    kept = check_weights(network, hub, weights, config.weights)
    tensors = {name: tensor.detach().contiguous() for name, tensor in kept.items()}
    write_bytes(join(config.output, WEIGHTS_NAME), save_safetensors(tensors), config.storage)
    written = hub.model_dump(mode="json", exclude_none=True) | {"num_classes": 0}
    write_json(join(config.output, CONFIG_NAME), written, config.storage)
    return hub


def read_checkpoint(uri: str, storage: Storage) -> Mapping[str, Any]:
    """The tensors in the file `uri`, by name, perhaps below other keys. Raises InputError when it holds code."""
    if not uri.endswith(SUFFIXES):
        raise InputError(
            f"weights {uri} end in none of {', '.join(SUFFIXES)}; name the file of tensors itself.",
            code="weights-unreadable",
        )
    try:
        data = read_bytes(uri, storage)
    except FileNotFoundError:
        raise InputError(
            f"weights {uri} are missing; name the file that the encoder's authors publish.", code="weights-missing"
        ) from None
    try:
        if uri.endswith(".safetensors"):
            return load_safetensors(data)
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        raise InputError(
            f"weights {uri} hold more than tensors, or were cut short, and are not loaded, since a pickle may run any "
            f"code ({said[:200] or 'no sound file of torch'}); have their authors publish safetensors.",
            code="weights-pickled",
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        said = str(error).strip().splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
        raise InputError(
            f"weights {uri} cannot be read ({said}); copy the file again.", code="weights-unreadable"
        ) from None
    if not isinstance(found, Mapping):
        raise InputError(
            f"weights {uri} hold a {type(found).__name__}, and tensors by their names were expected; name the file of "
            "the encoder's state dict.",
            code="weights-unreadable",
        )
    return found


def _describe(config: ConvertConfig, preset: EncoderPreset | None) -> HubConfig:
    """The config of the folder: of the preset or the named architecture, else the one beside the weights."""
    of_preset = preset.options.arguments() if preset else {}
    options = {**of_preset, **config.options.arguments()}
    place = beside(config.weights, CONFIG_NAME)
    if preset is None and config.architecture is None:
        if not exists(place, config.storage):
            raise InputError(
                f"{config.weights} has no {CONFIG_NAME} beside it, which would name the architecture; set preset or "
                "architecture.",
                code="config-missing-key",
            )
        hub = read_config(place.removesuffix(f"/{CONFIG_NAME}"), config.storage)
        return hub.model_copy(update={"model_args": {**hub.model_args, **options}})
    architecture = config.architecture or (preset.architecture if preset else "")
    check_encoder(architecture)
    side = options.get("img_size")
    about: dict[str, Any] = {"input_size": (3, side, side)} if side else {}
    if preset is not None:
        about |= {"mean": preset.color[0], "std": preset.color[1], "license": preset.license.name}
    return HubConfig.model_validate(
        json.loads(json.dumps({"architecture": architecture, "model_args": options, "pretrained_cfg": about}))
    )
