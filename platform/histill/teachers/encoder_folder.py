"""A timm model in the form of the Hugging Face hub: a folder with `config.json` and `model.safetensors`.

Both are read by histill's own storage, and nothing in them runs: the architecture is one that timm has, its arguments
are plain values, weights are safetensors.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar

import timm
import torch
from pydantic import ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor, nn

from histill.config.base import Strict
from histill.config.common import Storage
from histill.config.encoder import Color
from histill.errors import InputError
from histill.models.segmenter import check_encoder
from histill.storage.control import exists, read_bytes
from histill.storage.filesystems import storage_errors
from histill.storage.records import Record, read_record
from histill.storage.uris import is_remote, join, local_path

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin", "model.bin")
_LAYERS: Mapping[str, Any] = {  # what JSON cannot name
    "mlp": timm.layers.Mlp,
    "swiglu": timm.layers.SwiGLU,
    "swiglu_packed": timm.layers.SwiGLUPacked,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
_NOT_OF_THE_MODEL = frozenset(  # arguments of timm.create_model itself, which could read other files
    ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable",
     "exportable", "no_jit", "features_only", "out_indices")
)  # fmt: skip


class PretrainedConfig(Strict):
    """What a hub folder says of the weights; of all its keys those that histill reads."""

    model_config = ConfigDict(extra="ignore", strict=False, frozen=True)

    input_size: tuple[int, int, int] | None = None
    fixed_input_size: bool = False
    mean: Color | None = None
    std: Color | None = None
    classifier: str | tuple[str, ...] | None = None
    license: str | None = None


class HubConfig(Record):
    """The `config.json` of a timm model."""

    noun: ClassVar[str] = "the config of a timm model"
    remedy: ClassVar[str] = "write it with histill convert, which takes weights of other forms, too"
    model_config = ConfigDict(extra="ignore", strict=False, frozen=True)

    architecture: str
    global_pool: str | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    pretrained_cfg: PretrainedConfig = PretrainedConfig()

    @property
    def side_px(self) -> int | None:
        """The side of the tiles that it was trained on, if the file says it."""
        given = self.model_args.get("img_size") or self.pretrained_cfg.input_size
        side = given[-1] if isinstance(given, list | tuple) else given
        return side if isinstance(side, int) and side > 0 else None

    def arguments(self, *others: Mapping[str, object]) -> dict[str, Any]:
        """Arguments of the model, those of `others` above its own. Raises InputError for what is none of a model."""
        given = {"global_pool": self.global_pool, **self.model_args}
        for each in others:
            given |= each
        given.pop("num_classes", None)
        if wrong := _NOT_OF_THE_MODEL & self.model_args.keys():
            raise InputError(
                f"the config of {self.architecture} sets {min(wrong)!r} in model_args, which is no argument of a "
                "model; remove it.",
                code="encoder-unusable",
            )
        return {name: _layer(value) if name.endswith("_layer") else value for name, value in given.items()}


def _layer(named: Any) -> Any:
    """The class that is called so here; what timm takes by name stays as it is."""
    return _LAYERS.get(named, named) if isinstance(named, str) else named


def read_config(folder: str, storage: Storage) -> HubConfig:
    """The `config.json` in `folder`. Raises InputError when it is missing, no timm model's, or of an unknown one."""
    where = join(folder, CONFIG_NAME)
    try:
        config = read_record(HubConfig, where, storage)
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no timm model ({CONFIG_NAME} is missing); name a folder with {CONFIG_NAME} and "
            f"{WEIGHTS_NAME}, as the Hugging Face hub has them.",
            code="model-missing",
        ) from None
    check_encoder(config.architecture)
    return config


def build_network(config: HubConfig, *options: Mapping[str, object]) -> nn.Module:
    """The model of `config` without its classifier and with fresh weights, in evaluation mode.

    Of `options`, the later win, and all of them over the config's own. Raises InputError when timm builds no such
    model.
    """
    arguments = config.arguments(*options)
    shape = config.pretrained_cfg.model_dump(include={"input_size", "fixed_input_size"}, exclude_none=True)
    try:
        model = timm.create_model(
            config.architecture, num_classes=0, pretrained_cfg=shape if "input_size" in shape else None, **arguments
        )
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, AttributeError) as error:
        said = str(error).strip().splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InputError(
            f"timm builds no {config.architecture} with the options {_shown(arguments)} ({said}); correct "
            f"encoder.options, or model_args in {CONFIG_NAME}.",
            code="encoder-unusable",
        ) from None
    return model.requires_grad_(False).eval()


def outline(config: HubConfig, *options: Mapping[str, object]) -> nn.Module:
    """What `build_network` builds, on torch's meta device: shapes can be asked of it, and it costs no memory."""
    with torch.device("meta"):
        return build_network(config, *options)


def read_weights(folder: str, storage: Storage) -> tuple[dict[str, Tensor], str]:
    """The tensors in `folder`, by name, and the SHA-256 of the file. Raises InputError unless it is safetensors."""
    where = join(folder, WEIGHTS_NAME)
    try:
        if is_remote(where):
            data = read_bytes(where, storage)
            return load(data), hashlib.sha256(data).hexdigest()
        with storage_errors(where, storage), open(local_path(where), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return load_file(local_path(where)), digest  # mapped, so that a large model is not held twice
    except FileNotFoundError:
        pickled = next((name for name in PICKLES if exists(join(folder, name), storage)), None)
        if pickled is not None:
            raise InputError(
                f"{folder} holds {pickled}, a pickle, which is not loaded; convert it with histill convert.",
                code="weights-pickled",
            ) from None
        raise InputError(
            f"{where} is missing; copy the weights there, as safetensors.", code="weights-missing"
        ) from None
    except SafetensorError:
        raise InputError(
            f"{where} is not a safetensors file, or was cut short; copy it again, or convert the weights with "
            "histill convert.",
            code="weights-unreadable",
        ) from None


def load_network(
    config: HubConfig, weights: Mapping[str, Tensor], where: str, *options: Mapping[str, object]
) -> nn.Module:
    """The model of `config` with `weights`, without its classifier, in evaluation mode.

    Raises InputError, naming the first tensor, when the weights do not fit one to one; those of a classifier may be
    there.
    """
    network = outline(config, *options)
    given = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in check_weights(network, config, weights, where).items()
    }
    if not dict(network.named_buffers()).keys() <= given.keys():  # some are made with the model, and never saved
        network = build_network(config, *options)
    network.load_state_dict(given, assign=True)  # of a large model, making weights to be replaced takes half a minute
    return network


def check_weights(
    network: nn.Module, config: HubConfig, weights: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Those of `weights` that are not of a classifier. Raises InputError, as `load_network`, unless they fit."""
    wanted = network.state_dict()
    given = {
        name: tensor for name, tensor in weights.items() if name in wanted or not _of_classifier(name, config, network)
    }
    odd = sorted(wanted.keys() ^ given.keys())
    shapes = sorted(name for name in wanted.keys() & given.keys() if given[name].shape != wanted[name].shape)
    if not odd and not shapes:
        return given
    name = (odd + shapes)[0]
    if odd:
        said = "is missing" if name in wanted else "has no place in it"
    else:
        said = f"is of shape {tuple(given[name].shape)}, and {tuple(wanted[name].shape)} was expected"
    raise InputError(
        f"the weights in {where} do not fit {config.architecture} ({name} {said}; {len(odd) + len(shapes)} tensors are "
        "like it); set the preset that they are of, or the options that they were trained with.",
        code="weights-do-not-fit",
    )


def _of_classifier(name: str, config: HubConfig, network: nn.Module) -> bool:
    known = config.pretrained_cfg.classifier or getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    names = (known,) if isinstance(known, str) else known
    return any(name.startswith(f"{each}.") for each in names)


def _shown(arguments: Mapping[str, Any]) -> str:
    names = {id(layer): name for name, layer in _LAYERS.items()}
    values = {
        key: names.get(id(value), value) if key.endswith("_layer") else value
        for key, value in arguments.items()
        if value is not None
    }
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "of its default"
