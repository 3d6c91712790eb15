"""Transfer encoder weights between models, freeze encoders, and order parameters by depth."""

from collections.abc import Mapping

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from histill.errors import InputError
from histill.models.classifiers import Classifier
from histill.models.encoders import Encoder
from histill.models.segmenter import Segmenter

Model = Segmenter | Classifier | Encoder


def find_encoder(model: Model) -> nn.Module:
    """The timm model inside `model`; a classifier's includes its head."""
    encoder: nn.Module = model.network.encoder.model if isinstance(model, Segmenter) else model.network
    return encoder


def copy_encoder(source: Model, target: Model) -> None:
    """Copy the encoder's weights from one model to another, be it a segmenter or a classifier.

    A classifier's last layer and layers that a U-Net does not use are left unchanged in `target`. Raises InputError
    when the encoders differ.
    """
    if source.encoder_name != target.encoder_name:  # one encoder's weights may be a subset of another's
        raise InputError(
            f"the pretrained {source.encoder_name} is not the encoder {target.encoder_name}; set student.encoder to "
            "the one that was pretrained.",
            code="weights-do-not-fit",
        )
    given, wanted = _weights(source), _weights(target)
    shared = {name for name in given.keys() & wanted.keys() if given[name].shape == wanted[name].shape}
    # A U-Net's encoder lacks the layers past its last feature map, so the smaller of the two must be covered.
    missing = (given if isinstance(source, Segmenter) else wanted).keys() - shared
    if missing:
        raise InputError(
            f"the pretrained {source.encoder_name} was built with other options (first: {min(missing)}); pretrain it "
            "again with this version of histill.",
            code="weights-do-not-fit",
        )
    for name in shared:
        wanted[name].copy_(given[name])


def load_encoder(model: Model, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy published weights, by timm's names, into the encoder of `model`, except for a classifier's last layer.

    Raises InputError, naming `source`, when a tensor of the encoder is missing or has another shape.
    """
    given, wanted = {_flat(name): tensor for name, tensor in weights.items()}, _weights(model)
    for name, tensor in wanted.items():
        if name not in given or given[name].shape != tensor.shape:
            found = f"of shape {tuple(given[name].shape)}" if name in given else "missing"
            raise InputError(
                f"{source} does not hold the weights of {model.encoder_name}: {name} is {found} and "
                f"{tuple(tensor.shape)} was expected; name the file that timm publishes for this encoder.",
                code="weights-do-not-fit",
            )
    for name, tensor in wanted.items():
        tensor.copy_(given[name])


def parameters_by_depth(model: Model) -> list[list[nn.Parameter]]:
    """Parameters grouped by depth as in timm, from the stem to the last stage, then the head or decoder."""
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
    """Freeze everything up to the last feature map, so that only the decoder or a classifier's head is trained.

    The head may begin with convolutions (EfficientNet's does), which a segmenter does not pretrain.
    """
    with torch.device("meta"):
        features = timm.create_model(model.encoder_name, features_only=True)
    frozen = {_flat(name) for name, _ in features.named_parameters()}
    for name, parameter in find_encoder(model).named_parameters():
        if _flat(name) in frozen:
            parameter.requires_grad_(False)


def freeze_batch_norms(model: Model) -> None:
    """Exclude the encoder's batch norms from training: their statistics and weights stay as they were pretrained."""
    for module in find_encoder(model).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)


def _weights(model: Model) -> dict[str, Tensor]:
    """The encoder's tensors without its classifier's, by names that are the same in timm's feature extractors."""
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
