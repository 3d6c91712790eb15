"""The three kinds of teachers behind one interface, and how a configuration selects one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from histill.artifacts.model_folder import ModelCard, build, save
from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.config.load import validate
from histill.errors import InputError
from histill.teachers.classical import ClassicalTeacher
from histill.teachers.network import NetworkTeacher
from histill.teachers.onnx import OnnxTeacher
from histill.teachers.teacher import Teacher, load_teacher
from histill.testing.teachers import check_teacher

pytestmark = pytest.mark.unit

STORAGE = Storage()
CLASSES = ("background", "nucleus")
FRAME: dict[str, Any] = {
    "classes": CLASSES,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.2, 0.2, 0.2),
    "tile_px": 64,
    "tile_mpp": 0.5,
    "size_px": 32,
}


def model_folder(folder: Path, **changes: Any) -> str:
    values: dict[str, Any] = {"encoder": "csat_tiny", "decoder_channels": (16, 16, 8, 8, 8)}
    values |= {"tiles_digest": "tiles", "train_cases": (), "histill": "0"}
    card = ModelCard(**FRAME | values | changes)
    torch.manual_seed(0)
    folder.mkdir()
    save(str(folder), build(card), card)
    return str(folder)


def onnx_file(folder: Path, **changes: Any) -> str:
    weight = np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["tiles", "weight"], ["logits"])],
        "teacher",
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ("batch", 3, "height", "width"))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight")],
    )
    folder.mkdir()
    path = folder / "nuclei.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    path.with_suffix(".json").write_text(json.dumps(FRAME | {"output": "logits"} | changes))
    return str(path)


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TeacherConfig]:
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "classical": TeacherConfig(classical=True),
        "network": TeacherConfig(model=model_folder(folder / "model")),
        "onnx": TeacherConfig(onnx=onnx_file(folder / "onnx")),
    }


@pytest.fixture(params=["classical", "network", "onnx"])
def teacher(request: pytest.FixtureRequest, configs: dict[str, TeacherConfig]) -> Teacher:
    return load_teacher(configs[request.param], 0.5, STORAGE)


@pytest.fixture
def tiles(draw_tile: Callable[[int, int], tuple[np.ndarray, np.ndarray]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([draw_tile(seed, 64)[0] for seed in range(3)])).permute(0, 3, 1, 2)


def test_every_teacher_keeps_what_is_asked_of_one(teacher: Teacher, tiles: torch.Tensor) -> None:
    check_teacher(teacher, tiles)
    assert teacher.outputs.classes == CLASSES
    assert teacher.mpp == 0.5
    assert teacher.sees(64) == 2 * teacher.sees(32)


def test_a_window_has_an_answer_of_its_own_size(teacher: Teacher, tiles: torch.Tensor) -> None:
    if teacher.sees(32) % 32 and isinstance(teacher, NetworkTeacher):
        with pytest.raises(InputError, match="sides divisible by 32"):
            teacher.respond(tiles[..., :32, :32])
    else:
        assert teacher.respond(tiles[..., :32, :32]).shape == (3, 2, 32, 32)


@pytest.mark.parametrize("kind", ["classical", "network", "onnx"])
def test_a_teacher_loaded_again_has_the_same_digest(configs: dict[str, TeacherConfig], kind: str) -> None:
    loaded = [load_teacher(configs[kind], 0.5, STORAGE) for _ in range(2)]
    assert loaded[0].digest == loaded[1].digest
    assert isinstance(loaded[0], {"classical": ClassicalTeacher, "network": NetworkTeacher, "onnx": OnnxTeacher}[kind])


@pytest.mark.parametrize("kind", ["network", "onnx"])
def test_tiles_of_another_resolution_are_refused(configs: dict[str, TeacherConfig], kind: str) -> None:
    load_teacher(configs[kind], 0.51, STORAGE)
    with pytest.raises(InputError) as caught:
        load_teacher(configs[kind], 0.25, STORAGE)
    named = configs[kind].model or configs[kind].onnx
    assert str(caught.value).startswith(
        f"teacher {named} was trained on tiles of 0.5 um/px and the tile set has 0.25; cut"
    )


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [("model", "nowhere", "neither a model folder"), ("onnx", "nowhere.onnx", r"nowhere\.json is missing")],
)
def test_missing_files_are_named(tmp_path: Path, key: str, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_teacher(TeacherConfig.model_validate({key: str(tmp_path / name)}), 0.5, STORAGE)
    assert "\n" not in str(caught.value)


def test_a_classifier_answers_for_whole_tiles(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", kind="classification", decoder_channels=())
    teacher = load_teacher(TeacherConfig(model=folder), 0.5, STORAGE)
    assert not teacher.outputs.dense
    tiles = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    assert teacher.respond(tiles).shape == (3, len(teacher.outputs.classes))
    torch.testing.assert_close(teacher.respond(tiles[:1]), teacher.respond(tiles)[:1])


@pytest.mark.parametrize(
    "given", [{}, {"classical": True, "onnx": "t.onnx"}, {"model": "m", "onnx": "t.onnx"}, {"classical": False}]
)
def test_a_configuration_names_one_teacher(given: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"exactly one of teacher\.classical=true, .*, teacher\.onnx=<file>, .* and teacher\.features="
    ):
        validate(TeacherConfig, given, "the test")
