"""Nuclei networks with several answers: graphs of the real shapes, whose answers are what the tile's channels hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.errors import InputError
from histill.objects.watershed import separate_objects
from histill.teachers.onnx_nuclei import OnnxNucleiTeacher
from histill.teachers.teacher import load_teacher
from histill.testing.teachers import check_teacher

pytestmark = pytest.mark.unit

STORAGE = Storage()
Discs = list[tuple[int, int, int]]
CARD: dict[str, Any] = {"classes": ["background", "nucleus", "boundary"], "tile_mpp": 0.25}


def graph(
    answers: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    window: int,
    crop: int = 0,
    stride: int = 1,
    shift: int = 0,
    channels_last: bool = False,
    batch: int | str = "batch",
) -> onnx.ModelProto:
    """A 1x1 convolution for each answer (weight [C, 3], bias [C]), at every `stride` pixels, without its `crop`.

    With `shift`, the answer to a pixel is that to the one so many pixels to its right, as if the network looked there.
    """
    nodes, weights = [], {}
    source = "tiles"
    if channels_last:
        nodes.append(helper.make_node("Transpose", ["tiles"], ["first"], perm=[0, 3, 1, 2]))
        source = "first"
    for name, (weight, bias) in answers.items():
        weights |= {f"{name}_w": weight[..., None, None], f"{name}_b": bias}
        nodes.append(helper.make_node("Conv", [source, f"{name}_w", f"{name}_b"], [f"{name}_z"], strides=[stride] * 2))
        last = f"{name}_z"
        if crop:
            weights |= {"from": np.array([crop, crop + shift]), "axes": np.array([2, 3])}
            weights |= {"to": np.array([window - crop, window - crop + shift])}
            nodes.append(helper.make_node("Slice", [last, "from", "to", "axes"], [f"{name}_cut"]))
            last = f"{name}_cut"
        kind = {"perm": [0, 2, 3, 1]} if channels_last else {}
        nodes.append(helper.make_node("Transpose" if channels_last else "Identity", [last], [name], **kind))
    shape = (batch, window, window, 3) if channels_last else (batch, 3, window, window)
    made = helper.make_graph(
        nodes,
        "nuclei",
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in answers],
        [numpy_helper.from_array(v if v.dtype == np.int64 else v.astype(np.float32), n) for n, v in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def linear(*rows: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of channels, each a function of red, green and blue in 0..1: a r + b g + c b + d."""
    values = np.array(rows, np.float64)
    return values[:, :3], values[:, 3]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., OnnxNucleiTeacher]:
    """`load(model, **card)`: the teacher of a graph."""

    def make(model: onnx.ModelProto, **card: Any) -> OnnxNucleiTeacher:
        (tmp_path / "nuclei.onnx").write_bytes(model.SerializeToString())
        (tmp_path / "nuclei.json").write_text(json.dumps(CARD | card))
        return OnnxNucleiTeacher.load(str(tmp_path / "nuclei.onnx"), STORAGE)

    return make


def paint(discs: Discs, side: int, reds: tuple[float, ...] = ()) -> tuple[np.ndarray, torch.Tensor]:
    """Labels, and a tile: red where there is a nucleus, green and blue the distance to its center, 1/2 for none."""
    rows, columns = np.indices((side, side)).astype(np.float64)
    labels, tile = np.zeros((side, side), np.int64), np.full((3, side, side), 0.5)
    tile[0] = 0
    for number, (x, y, radius) in enumerate(discs, start=1):
        inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
        labels[inside] = number
        tile[0][inside] = reds[number - 1] if reds else 1
        tile[1][inside] = (0.5 + (columns - x) / radius / 2)[inside]
        tile[2][inside] = (0.5 + (rows - y) / radius / 2)[inside]
    return labels, torch.from_numpy(np.rint(tile * 255).astype(np.uint8))[None]


def found(teacher: OnnxNucleiTeacher, tile: torch.Tensor, mpp: float = 0.25) -> Any:
    probabilities = teacher.outputs.probabilities(teacher.respond(tile))[0].numpy()
    return separate_objects(probabilities, boundary=teacher.outputs.boundary, mpp=mpp)


def check_same(labels: np.ndarray, true: np.ndarray, least: float = 0.85) -> None:
    """Each true object has one found object of its own, with a high IoU."""
    assert labels.max() == true.max()
    for number in range(1, true.max() + 1):
        ious = [
            ((labels == n) & (true == number)).sum() / ((labels == n) | (true == number)).sum()
            for n in range(1, labels.max() + 1)
        ]
        assert max(ious) > least


DISCS: Discs = [
    (30, 60, 14),
    (56, 60, 14),
    (120, 120, 16),
    (150, 122, 15),
    (230, 40, 13),
    (165, 200, 14),
    (250, 250, 13),
]
HOVERNET = {
    "np": linear((-20, 0, 0, 10), (20, 0, 0, -10)),
    "hv": linear((0, 2, 0, -1), (0, 0, 2, -1)),
}
HOVERNET_CARD = {
    "method": "hovernet",
    "outputs": {"nucleus": "np", "distances": "hv"},
    "window_px": 256,
    "margin_px": 46,
}


def test_hovernet_finds_touching_nuclei_over_the_borders_of_its_windows(load: Callable[..., OnnxNucleiTeacher]) -> None:
    """Windows of 256 px of which 164 are answered, over a tile of 300."""
    teacher = load(graph(HOVERNET, window=256, crop=46), **HOVERNET_CARD)
    true, tile = paint(DISCS, 300)
    check_same(found(teacher, tile).labels, true)
    assert teacher.outputs.classes == ("background", "nucleus", "boundary")
    decided = teacher.outputs.decide(teacher.respond(tile))[0].numpy()
    np.testing.assert_array_equal(decided > 0, true > 0)


@pytest.mark.parametrize("margin", [46, 64])
def test_a_margin_may_be_wider_than_what_the_network_leaves_out(
    load: Callable[..., OnnxNucleiTeacher], margin: int
) -> None:
    teacher = load(graph(HOVERNET, window=256, crop=40), **HOVERNET_CARD | {"margin_px": margin})
    true, tile = paint(DISCS, 256)
    check_same(found(teacher, tile).labels, true)


def test_beyond_a_tile_a_network_sees_its_mirror_image(load: Callable[..., OnnxNucleiTeacher]) -> None:
    shifted = graph(HOVERNET, window=64, crop=16, shift=9)
    changes = {"window_px": 64, "margin_px": 16, "classes": ["background", "nucleus"]}
    teacher = load(shifted, **HOVERNET_CARD | changes)
    tile = torch.randint(256, (1, 3, 80, 80), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    logits = teacher.respond(tile)[0].numpy()
    red = np.pad(tile[0, 0].numpy() / 255, ((0, 0), (0, 9)), mode="reflect")[:, 9:]
    np.testing.assert_allclose(logits[1] - logits[0], np.clip(40 * red - 20, -13.82, 13.82), atol=0.05)


def test_hovernet_gives_each_nucleus_one_type(load: Callable[..., OnnxNucleiTeacher]) -> None:
    """The third type is told from the second by a red of 1 where the other has 0.7."""
    types = linear((-20, 0, 0, 10), (0, 0, 0, 0), (40, 0, 0, -34))
    teacher = load(
        graph(HOVERNET | {"tp": types}, window=256, crop=46),
        **HOVERNET_CARD
        | {
            "classes": ["background", "stromal", "tumour", "boundary"],
            "outputs": HOVERNET_CARD["outputs"] | {"types": "tp"},
        },
    )
    reds = (0.7, 1.0, 0.7, 1.0, 1.0, 0.7, 0.7)
    true, tile = paint(DISCS, 300, reds)
    tile[0, 0, 240:260, 240:246][torch.from_numpy(true[240:260, 240:246] > 0)] = 255  # a part of the last one
    objects = found(teacher, tile)
    check_same(objects.labels, true)
    inside = teacher.outputs.decide(teacher.respond(tile))[0].numpy()[244:256, 242:258]
    assert (inside == 1).all()
    for number, red in enumerate(reds, start=1):
        x, y, _ = DISCS[number - 1]
        assert objects.classes[objects.labels[y, x] - 1] == (2 if red == 1.0 else 1)


def test_without_a_boundary_class_the_response_is_of_pixels_alone(load: Callable[..., OnnxNucleiTeacher]) -> None:
    teacher = load(graph(HOVERNET, window=256, crop=46), **HOVERNET_CARD, classes=["background", "nucleus"])
    _, tile = paint(DISCS, 164)
    logits = teacher.respond(tile)[0].numpy()
    red = tile[0, 0].numpy() / 255
    np.testing.assert_allclose(logits[1] - logits[0], np.clip(40 * red - 20, -13.9, 13.9), atol=0.2)


def test_stardist_has_its_channels_last_and_half_the_pixels(load: Callable[..., OnnxNucleiTeacher]) -> None:
    """Only pixels at a center propose: their red is 1, and their rays are as long as green says, to 51 px."""
    rays = linear(*[(0, 51, 0, 0)] * 32)
    teacher = load(
        graph({"prob": linear((20, 0, 0, -16)), "dist": rays}, window=256, stride=2, channels_last=True, batch=1),
        method="stardist", outputs={"probability": "prob", "rays": "dist"}, window_px=256, margin_px=32, stride=2,
        threshold=0.6, channels_last=True,
    )  # fmt: skip
    true, _ = paint(DISCS, 300)
    tile = np.zeros((3, 300, 300), np.uint8)
    for x, y, radius in DISCS:
        tile[0, y : y + 2, x : x + 2], tile[1, y : y + 2, x : x + 2] = 255, 5 * radius
    check_same(found(teacher, torch.from_numpy(tile)[None]).labels, true, least=0.8)


def test_cellpose_is_followed_to_its_centers(load: Callable[..., OnnxNucleiTeacher]) -> None:
    """Flows are 5 times unit vectors; here as long as the distance to the center, of which 1 is the edge."""
    flows = linear((0, 0, -10, 5), (0, -10, 0, 5), (20, 0, 0, -10))
    teacher = load(graph({"flows": flows}, window=256), method="cellpose", outputs={"flows": "flows"}, window_px=256,
                   margin_px=16)  # fmt: skip
    true, tile = paint(DISCS, 300)
    check_same(found(teacher, tile).labels, true)


def test_a_network_that_numbers_its_nuclei_itself_is_taken_at_its_word(load: Callable[..., OnnxNucleiTeacher]) -> None:
    """As InstanSeg does; here the red of a tile is the number."""
    numbers = linear((255, 0, 0, 0), (0, 0, 0, 0))
    teacher = load(graph({"labels": numbers}, window=300), method="labels", outputs={"labels": "labels"}, window_px=300)
    true, _ = paint(DISCS, 300)
    tile = np.stack([true * 20, true, true]).astype(np.uint8)
    check_same(found(teacher, torch.from_numpy(tile)[None]).labels, true)
    with pytest.raises(InputError, match="numbers the nuclei of 300 px and a tile or window has 512"):
        teacher.sees(512)


def test_percentiles_of_a_tile_become_0_and_1(load: Callable[..., OnnxNucleiTeacher]) -> None:
    """A tile of half the contrast gets the same response."""
    teacher = load(
        graph({"labels": linear((1, 0, 0, 0))}, window=64), method="labels", outputs={"labels": "labels"},
        window_px=64, percentiles=[0, 100],
    )  # fmt: skip
    true, tile = paint([(20, 20, 10), (44, 44, 9)], 64)
    low = (tile.float() * 0.4 + 40).round().to(torch.uint8)
    assert torch.equal(teacher.respond(low), teacher.respond(tile))
    np.testing.assert_array_equal(teacher.outputs.decide(teacher.respond(tile))[0].numpy() > 0, true > 0)


def test_it_keeps_the_contract_of_teachers_and_is_loaded_by_its_key(
    load: Callable[..., OnnxNucleiTeacher], tmp_path: Path
) -> None:
    load(graph(HOVERNET, window=96, crop=16), **HOVERNET_CARD | {"window_px": 96, "margin_px": 16})
    teacher = load_teacher(TeacherConfig(onnx_nuclei=str(tmp_path / "nuclei.onnx")), 0.25, STORAGE)
    tiles = torch.cat([paint([(20 + 7 * n, 30, 9), (40, 60, 8)], 80)[1] for n in range(3)])
    check_teacher(teacher, tiles)
    with pytest.raises(InputError, match=r"was trained on tiles of 0\.25 um/px"):
        load_teacher(TeacherConfig(onnx_nuclei=str(tmp_path / "nuclei.onnx")), 0.5, STORAGE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outputs": {"nucleus": "np"}}, "outputs names nucleus; hovernet has nucleus, distances, types, and needs"),
        ({"outputs": {"nucleus": "np", "distances": "vh"}}, "has no output 'vh', which its card names as distances"),
        ({"outputs": {"nucleus": "hv", "distances": "tp"}}, "answers 3 channels as 'tp', and 2 were expected of dist"),
        ({"margin_px": 20}, r"216 px or more were expected by margin_px 20 and stride 1"),
        ({"margin_px": 128}, r"window_px 256 without margin_px 128 on each side is 0"),
        ({"classes": ["background", "a", "b"]}, "names 2 types of nuclei and outputs has no types"),
        ({"method": "star"}, "method"),
    ],
)
def test_a_card_that_does_not_fit_its_graph_is_refused(
    load: Callable[..., OnnxNucleiTeacher], changes: dict[str, Any], said: str
) -> None:
    model = graph(HOVERNET | {"tp": linear(*[(1, 0, 0, 0)] * 3)}, window=256, crop=46)
    with pytest.raises(InputError, match=said) as caught:
        load(model, **HOVERNET_CARD | changes)
    assert "\n" not in str(caught.value)
