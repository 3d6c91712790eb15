"""The encoder of a model: copied to another model, frozen, and trained with layer-wise learning rates."""

import functools
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from histill.config.runs import Optimizer
from histill.errors import InputError
from histill.models.classifiers import Classifier, build_classifier
from histill.models.segmenter import Segmenter, build_segmenter
from histill.models.transfer import Model, copy_encoder, find_encoder, freeze_encoder, parameters_by_depth
from histill.train.schedule import make_optimizer
from histill.train.statistics import freeze_modules

pytestmark = pytest.mark.unit

ENCODERS = ["csat_tiny", "efficientnet_b0", "resnet18"]
BATCH_NORM = ["efficientnet_b0", "resnet18"]
STEMS = {"csat_tiny": "stem", "efficientnet_b0": "conv_stem", "resnet18": "conv1"}
LAST = {"csat_tiny": "stages.3", "efficientnet_b0": "blocks.6", "resnet18": "layer4"}  # the last feature map


def segmenter(encoder: str, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    model = build_segmenter(encoder, 2, (8, 8, 8, 8, 8))
    model.train()(tiles())  # gives BatchNorm statistics of its own
    return model.eval()


def classifier(encoder: str, seed: int = 0, classes: int = 3) -> Classifier:
    torch.manual_seed(seed)
    model = build_classifier(encoder, classes, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    model.train()(tiles())
    return model.eval()


def tiles() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(9)) * 255


@torch.no_grad()
def features(model: Model) -> Tensor:
    """The last feature map that both kinds of models have."""
    normalized = tiles() / 255 - 0.5
    if isinstance(model, Segmenter):
        return model.network.encoder(normalized)[-1]
    found: list[Tensor] = []
    layer = model.network.get_submodule(LAST[model.encoder_name])
    hook = layer.register_forward_hook(lambda layer, given, output: found.append(output))
    model.network(normalized)
    hook.remove()
    return found[0]


def own(model: Model) -> dict[str, Tensor]:
    """Copies of the tensors that copying an encoder must not change: decoder and head, or the last layer."""
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, Segmenter):
        kept = {name for name in names if not name.startswith("network.encoder.")}
    else:
        last = set(map(id, model.network.get_classifier().parameters()))
        kept = {name for name, parameter in model.named_parameters() if id(parameter) in last}
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name in kept | {"mean", "std"}}


PAIRS = [
    pytest.param(segmenter, classifier, id="segmenter to classifier"),
    pytest.param(classifier, segmenter, id="classifier to segmenter"),
    pytest.param(classifier, lambda name, seed: classifier(name, seed, 5), id="classifier to one of other classes"),
    pytest.param(segmenter, segmenter, id="segmenter to segmenter"),
]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("make_source", "make_target"), PAIRS)
def test_the_encoder_is_carried_and_nothing_else(
    encoder: str, make_source: Callable[..., Model], make_target: Callable[..., Model]
) -> None:
    source, target = make_source(encoder, 1), make_target(encoder, 2)
    before = own(target)
    assert len(before) >= 4  # a weight and a bias at least, besides mean and std
    assert not torch.allclose(features(source), features(target), atol=1e-3)
    copy_encoder(source, target)
    assert torch.equal(features(source), features(target))
    after = own(target)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    memory = [{tensor.data_ptr() for tensor in model.state_dict().values()} for model in (source, target)]
    assert memory[0].isdisjoint(memory[1])


def test_a_classifier_carries_all_but_its_last_layer_to_another() -> None:
    """Also what comes after the last feature map, such as the convolution that ends an EfficientNet."""
    source, target = classifier("efficientnet_b0", 1), classifier("efficientnet_b0", 2, 5)
    copy_encoder(source, target)
    with torch.no_grad():
        assert torch.equal(source.network.forward_features(tiles()), target.network.forward_features(tiles()))


@pytest.mark.parametrize(
    ("make_source", "make_target"),
    [(segmenter, classifier), (classifier, segmenter), (classifier, classifier), (segmenter, segmenter)],
)
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("csat_tiny", "resnet18"),
        ("resnet18", "resnet34"),
    ],  # resnet18's weights all fit into resnet34's
)
def test_another_encoder_is_refused(
    make_source: Callable[..., Model], make_target: Callable[..., Model], source: str, target: str
) -> None:
    given, wanted = make_source(source), make_target(target)
    before = {name: tensor.clone() for name, tensor in wanted.state_dict().items()}
    with pytest.raises(InputError, match=f"{source} is not the encoder {target}; set student.encoder") as caught:
        copy_encoder(given, wanted)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in wanted.state_dict().items())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("make", [segmenter, classifier])
def test_every_parameter_has_one_depth_from_the_stem_to_the_head(make: Callable[..., Model], encoder: str) -> None:
    model = make(encoder)
    depths = parameters_by_depth(model)
    assert sorted(id(one) for group in depths for one in group) == sorted(map(id, model.parameters()))
    assert all(depths)
    depth_of = {id(one): depth for depth, group in enumerate(depths) for one in group}
    stem = next(p for name, p in find_encoder(model).named_parameters() if STEMS[encoder] in name)
    assert depth_of[id(stem)] == 0
    inside = set(map(id, find_encoder(model).parameters()))
    for parameter in model.parameters():
        if id(parameter) not in inside:
            assert depth_of[id(parameter)] == len(depths) - 1
    if isinstance(model, Classifier):
        last = list(map(id, model.network.get_classifier().parameters()))
        assert {depth_of[one] for one in last} == {len(depths) - 1}
    stages = [depth_of[id(parameter)] for parameter in find_encoder(model).parameters()]
    assert encoder == "efficientnet_b0" or stages == sorted(stages)  # modules are ordered by depth


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_carried_encoder_has_the_same_depths_in_both_kinds(encoder: str) -> None:
    def depths(model: Model) -> dict[str, int]:
        names = {id(p): n.removeprefix("model.").replace(".", "_") for n, p in find_encoder(model).named_parameters()}
        groups = parameters_by_depth(model)
        return {names[id(one)]: depth for depth, group in enumerate(groups) for one in group if id(one) in names}

    whole, without_head = depths(classifier(encoder)), depths(segmenter(encoder))
    assert without_head
    assert without_head.items() <= whole.items()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("make", [segmenter, classifier])
def test_rates_fall_from_the_head_to_the_stem(make: Callable[..., Model], encoder: str) -> None:
    model, decay = make(encoder), 0.5
    depths = parameters_by_depth(model)
    optimizer = make_optimizer(depths, Optimizer(weight_decay=0.1), decay)
    scale_of = {id(one): group["lr_scale"] for group in optimizer.param_groups for one in group["params"]}
    assert len(scale_of) == sum(len(group["params"]) for group in optimizer.param_groups)
    for distance, parameters in enumerate(reversed(depths)):
        assert {scale_of[id(one)] for one in parameters} == {decay**distance}
    decayed = [group for group in optimizer.param_groups if group["weight_decay"]]
    assert all(one.ndim > 1 for group in decayed for one in group["params"])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_groups_of_a_classifier_are_those_of_timm_by_stages(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm decays by blocks and does not know a U-Net's encoder, so its function serves only as an oracle."""
    model = classifier(encoder)
    by_stages = functools.partial(type(model.network).group_matcher, model.network, coarse=True)
    monkeypatch.setattr(model.network, "group_matcher", lambda coarse: by_stages())

    def rates(groups: Iterable[Mapping[str, Any]]) -> dict[int, tuple[float, float]]:
        return {id(one): (group["lr_scale"], group["weight_decay"]) for group in groups for one in group["params"]}

    ours = make_optimizer(parameters_by_depth(model), Optimizer(weight_decay=0.1), 0.75).param_groups
    assert rates(ours) == rates(param_groups_layer_decay(model.network, 0.1, layer_decay=0.75))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("make", [segmenter, classifier])
def test_a_frozen_encoder_gives_the_same_features_after_a_step(make: Callable[..., Model], encoder: str) -> None:
    model = make(encoder)
    freeze_encoder(model)
    before, head = features(model), own(model)
    optimizer = make_optimizer([list(model.parameters())], Optimizer(lr=0.1, weight_decay=0.1))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    model.train()
    freeze_modules(model)
    model(tiles()).square().mean().backward()
    optimizer.step()
    model.eval()
    assert torch.equal(features(model), before)  # neither weights nor statistics have changed
    moved = own(model)
    assert all(not torch.equal(moved[name], tensor) for name, tensor in head.items() if name not in ("mean", "std"))


@pytest.mark.parametrize("encoder", BATCH_NORM)
def test_frozen_modules_stay_in_evaluation_mode_and_others_do_not(encoder: str) -> None:
    model = classifier(encoder)
    freeze_encoder(model)
    model.train()
    freeze_modules(model)
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        if parameters:
            assert module.training == any(one.requires_grad for one in parameters), name


def test_nothing_rests_where_nothing_is_frozen() -> None:
    model = classifier("resnet18").train()
    freeze_modules(model)
    assert all(module.training for module in model.modules())


def test_what_no_segmenter_has_is_learned_beside_the_frozen_encoder() -> None:
    """An EfficientNet's head begins with a convolution, which is still random after copying from a segmenter."""
    model = classifier("efficientnet_b0")
    copy_encoder(segmenter("efficientnet_b0"), model)
    freeze_encoder(model)
    learned = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learned == {"conv_head", "bn2", "classifier"}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_of_a_segmenters_encoder_is_frozen(encoder: str) -> None:
    model = segmenter(encoder)
    freeze_encoder(model)
    assert not any(parameter.requires_grad for parameter in find_encoder(model).parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("network.encoder.")]
    assert all(parameter.requires_grad for parameter in rest)


def test_paths_do_not_drop_within_frozen_blocks() -> None:
    model = classifier("csat_tiny")
    blocks = [module for module in model.modules() if hasattr(module, "drop_path")]
    assert blocks
    for block in blocks:
        block.drop_path = nn.Dropout(0.9)
    freeze_encoder(model)
    before = features(model.eval())
    model.train()
    assert not torch.equal(features(model), before)
    freeze_modules(model)
    assert torch.equal(features(model), before)


def test_the_package_registers_its_encoders_with_timm() -> None:
    """In a process that has imported nothing else of histill, such as a notebook."""
    code = (
        "import histill.models, timm\n"
        "model = timm.create_model('csat_tiny', num_classes=2)\n"
        "names = ['csat', 'csat_fine', 'csat_tiny', 'resnet_gn']\n"
        "print(model.num_classes, [timm.is_model(name) for name in names])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "2 [True, True, True, True]\n", done.stderr
