"""The encoder within a model: its weights carried over to another, and its layers by depth."""

from collections.abc import Mapping

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from histill.errors import InputError
from histill.models.classifiers import Classifier
from histill.models.segmenter import Segmenter

Model = Segmenter | Classifier


def find_encoder(model: Model) -> nn.Module:
    """The timm model within; a classifier's includes its head."""
    encoder: nn.Module = model.network.encoder.model if isinstance(model, Segmenter) else model.network
    return encoder


def copy_encoder(source: Model, target: Model) -> None:
    """Copy the encoder's weights of one model into another, whatever either is for.

    A classifier's last layer, and layers that a U-Net does not use, stay as they are in `target`. Raises InputError
    when the encoders differ.
    """
    if source.encoder_name != target.encoder_name:  # the weights of one may well be a part of the other's
        raise InputError(
            f"the pretrained {source.encoder_name} is not the encoder {target.encoder_name}; set student.encoder to "
            "the one that was pretrained."
        )
    given, wanted = _weights(source), _weights(target)
    shared = {name for name in given.keys() & wanted.keys() if given[name].shape == wanted[name].shape}
    # A U-Net's encoder lacks the layers past its last feature map, so the smaller of the two must be covered.
    missing = (given if isinstance(source, Segmenter) else wanted).keys() - shared
    if missing:
        raise InputError(
            f"the pretrained {source.encoder_name} was built with other options (first: {min(missing)}); pretrain it "
            "again with those of this version."
        )
    for name in shared:
        wanted[name].copy_(given[name])


def load_encoder(model: Model, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy published weights, by timm's names, into the encoder of `model`; a classifier's last layer stays as it is.

    Raises InputError, naming `source`, when they lack a tensor of the encoder or have it in another shape.
    """
    given, wanted = {_flat(name): tensor for name, tensor in weights.items()}, _weights(model)
    for name, tensor in wanted.items():
        if name not in given or given[name].shape != tensor.shape:
            found = f"of shape {tuple(given[name].shape)}" if name in given else "missing"
            raise InputError(
                f"{source} does not hold the weights of {model.encoder_name}: {name} is {found} and "
                f"{tuple(tensor.shape)} was expected; name the file that timm publishes for this encoder."
            )
    for name, tensor in wanted.items():
        tensor.copy_(given[name])


def parameters_by_depth(model: Model) -> list[list[nn.Parameter]]:
    """The parameters from the stem to the last stage, as timm groups them, then the head or decoder."""
    with torch.device("meta"):
        plain = timm.create_model(model.encoder_name, num_classes=1)
    group = {
        _flat(name): depth
        for name, depth in group_parameters(plain, plain.group_matcher(coarse=True), reverse=True).items()
    }
    deepest = max(group.values())
    inside = {id(parameter): _flat(name) for name, parameter in find_encoder(model).named_parameters()}
    depths: list[list[nn.Parameter]] = [[] for _ in range(deepest + 1)]
    for parameter in model.parameters():
        depths[group[inside[id(parameter)]] if id(parameter) in inside else deepest].append(parameter)
    return depths


def freeze_encoder(model: Model) -> None:
    """Leave only what follows the last feature map to be learned: the decoder, or a classifier's head.

    That head may begin with convolutions (EfficientNet's does), which no segmenter has pretrained.
    """
    with torch.device("meta"):
        features = timm.create_model(model.encoder_name, features_only=True)
    frozen = {_flat(name) for name, _ in features.named_parameters()}
    for name, parameter in find_encoder(model).named_parameters():
        if _flat(name) in frozen:
            parameter.requires_grad_(False)


def _weights(model: Model) -> dict[str, Tensor]:
    """The encoder's tensors but its classifier's, by names that feature extractors do not change."""
    last = set(map(id, _classifier(model)))
    state = find_encoder(model).state_dict(keep_vars=True)
    return {_flat(name): tensor.detach() for name, tensor in state.items() if id(tensor) not in last}


def _flat(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")


def _classifier(model: Model) -> list[nn.Parameter]:
    if not isinstance(model, Classifier):
        return []
    head: nn.Module = model.network.get_classifier()  # type: ignore[operator]
    return list(head.parameters())
