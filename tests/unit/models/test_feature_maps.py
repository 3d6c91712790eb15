"""Feature maps by name, and the learned projections that compare them."""

import pytest
import torch

from histill.errors import InputError
from histill.losses.layers import Layers
from histill.models.classifiers import build_classifier, check_side
from histill.models.feature_maps import forward_with_features, layer_channels
from histill.models.projection import ProjectedStudent, StudentOutput
from histill.models.segmenter import build_segmenter
from histill.models.transfer import Model

pytestmark = pytest.mark.unit

HALF = (0.5, 0.5, 0.5)


def classifier(encoder: str) -> Model:
    torch.manual_seed(0)
    return build_classifier(encoder, 3, mean=HALF, std=HALF).eval()


def segmenter(encoder: str) -> Model:
    torch.manual_seed(0)
    return build_segmenter(encoder, 3, (16, 16, 8, 8, 8)).eval()


def tiles(side: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("encoder", ["csat_tiny", "resnet_gn", "resnet18", "tf_efficientnet_lite0", "convnextv2_atto"])
@pytest.mark.parametrize("make", [classifier, segmenter])
def test_maps_come_with_the_logits_that_the_model_gives(encoder: str, make: type) -> None:
    model = make(encoder)
    channels = layer_channels(model)
    names = list(channels)
    asked = (names[-1], names[0])
    with torch.no_grad():
        logits, maps = forward_with_features(model, tiles(), asked)
        torch.testing.assert_close(logits, model(tiles()))
    assert set(maps) == set(asked)
    assert {name: each.shape[1] for name, each in maps.items()} == {name: channels[name] for name in asked}
    assert maps[names[-1]].shape[-1] == 2


def test_the_paper_s_network_is_as_published() -> None:
    model = classifier("resnet_gn")
    assert list(layer_channels(model).values())[1:] == [32, 64, 128, 256]
    assert 1.15e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.3e6
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(tiles()[:1]), model(tiles())[:1])


@pytest.mark.parametrize("side", [14, 28, 56])
@pytest.mark.parametrize("encoder", ["csat", "resnet_gn"])
def test_classifiers_see_a_sixteenth_of_the_resolution(encoder: str, side: int) -> None:
    model = classifier(encoder)
    check_side(model, side)  # type: ignore[arg-type]
    with torch.no_grad():
        assert model(tiles(side)).shape == (2, 3)


def test_a_side_that_vanishes_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="encoder convnextv2_atto cannot see tiles of 14 px") as caught:
        check_side(classifier("convnextv2_atto"), 14)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_matching_projects_where_widths_differ_and_adds_nothing_to_what_is_kept() -> None:
    model = classifier("csat_tiny")
    layers = Layers(
        student=("stages.2",),
        teacher=("layer3", "layer4"),
        pairs=((("stages.3", "layer4"), 256), (("stages.3", "layer3"), 64)),
        mixed=(("stages.3", "layer4"), ("stages.3", "layer3")),
    )
    matching = ProjectedStudent(model, layers).train()
    assert [type(each).__name__ for each in matching.projections] == [
        "Conv2d",
        "Identity",
    ]  # the last has 64 channels, as csat_tiny
    answers = matching(tiles())
    assert isinstance(answers, StudentOutput)
    assert set(answers.maps) == {"stages.2"}
    assert {pair: each.shape[1] for pair, each in answers.projected.items()} == dict(layers.pairs)
    assert answers.mixture is not None
    assert answers.mixture.shape == (2,)
    with torch.no_grad():
        torch.testing.assert_close(matching.eval()(tiles()), model.eval()(tiles()))
    assert matching.model is model
