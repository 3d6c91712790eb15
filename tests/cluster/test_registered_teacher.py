"""Teachers from a real model registry, copied to where every node reads them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mlflow import MlflowClient
from onnx import TensorProto, helper, numpy_helper

from histill.artifacts import model_folder
from histill.artifacts.model_folder import CARD_NAME, WEIGHTS_NAME, ModelCard
from histill.config.common import Storage, Teacher, Tracking
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.local.s3 import S3Server
from histill.registry.materialize import materialize_reference, materialize_teacher
from histill.registry.training import fetch_sources
from histill.registry.versions import register
from histill.storage.control import read_bytes, remove, write_bytes
from histill.storage.uris import join
from histill.teachers.teacher import load_teacher

pytestmark = pytest.mark.cluster

STORAGE = Storage()


@pytest.fixture
def runs(s3: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A folder of runs in S3 of the test's own."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.bucket}/{request.node.name}"


@pytest.fixture
def registered(config: Tracking, tmp_path: Path) -> Callable[[int], tuple[str, str]]:
    """`register(seed)`: a version of the model `nuclei-teacher` with weights of its own; (version, digest)."""
    card = ModelCard(
        encoder="csat_tiny",
        decoder_channels=(16, 8, 8, 8, 8),
        classes=("background", "nucleus"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        tile_px=64,
        tile_mpp=0.5,
        size_px=64,
        tiles_digest="ab" * 32,
        train_cases=(),
        histill="0.1.0",
    )

    def make(seed: int) -> tuple[str, str]:
        torch.manual_seed(seed)
        folder = tmp_path / f"model-{seed}"
        folder.mkdir()
        model_folder.save(str(folder), model_folder.build(card), card)
        digest = model_folder.load(str(folder), STORAGE)[2]
        return register(str(folder), "nuclei-teacher", {}, config, STORAGE), digest

    return make


def test_a_registered_teacher_is_copied_once_to_a_place_of_its_own(
    registered: Callable[[int], tuple[str, str]], config: Tracking, runs: str
) -> None:
    version, digest = registered(0)
    MlflowClient(config.uri, config.uri).set_registered_model_alias("nuclei-teacher", "champion", version)
    settled = materialize_teacher(Teacher(model="models:/nuclei-teacher@champion"), config, runs, STORAGE)
    assert settled == Teacher(model=f"{runs}/teacher-{digest[:12]}")
    assert load_teacher(settled, 0.5, STORAGE).digest == digest

    write_bytes(join(str(settled.model), WEIGHTS_NAME), b"there already", STORAGE)
    by_number = materialize_teacher(Teacher(model=f"models:/nuclei-teacher/{version}"), config, runs, STORAGE)
    assert by_number == settled
    assert read_bytes(join(str(settled.model), WEIGHTS_NAME), STORAGE) == b"there already"


def test_a_copy_that_was_interrupted_is_made_again(
    registered: Callable[[int], tuple[str, str]], config: Tracking, runs: str
) -> None:
    version, digest = registered(1)
    place = f"{runs}/teacher-{digest[:12]}"
    write_bytes(join(place, WEIGHTS_NAME), b"half", STORAGE)  # the card comes last
    settled = materialize_teacher(Teacher(model=f"models:/nuclei-teacher/{version}"), config, runs, STORAGE)
    assert load_teacher(settled, 0.5, STORAGE).digest == digest
    assert read_bytes(join(place, CARD_NAME), STORAGE)


def test_another_version_has_another_place(
    registered: Callable[[int], tuple[str, str]], config: Tracking, tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    models = {
        materialize_teacher(Teacher(model=f"models:/nuclei-teacher/{version}"), config, str(folder), STORAGE).model
        for version, _ in (registered(2), registered(3))
    }
    assert models == {str(path) for path in folder.iterdir()}
    assert len(models) == 2


def test_other_teachers_stay_as_they_are(tmp_path: Path) -> None:
    nobody = Tracking(uri="http://127.0.0.1:9")
    for teacher in (Teacher(classical=True), Teacher(model="s3://runs/teacher"), Teacher(onnx="nuclei.onnx")):
        assert materialize_teacher(teacher, nobody, str(tmp_path / "never"), STORAGE) == teacher
        held_out = HeldOut(tiles="tiles", reference=teacher)
        assert materialize_reference(held_out, nobody, str(tmp_path / "never"), STORAGE) == held_out
    assert materialize_reference(HeldOut(tiles="tiles"), nobody, str(tmp_path), STORAGE) == HeldOut(tiles="tiles")
    assert not (tmp_path / "never").exists()


def test_a_registered_reference_is_settled(
    registered: Callable[[int], tuple[str, str]], config: Tracking, tmp_path: Path
) -> None:
    version, digest = registered(4)
    held_out = HeldOut(tiles="tiles", reference=Teacher(model=f"models:/nuclei-teacher/{version}"))
    settled = materialize_reference(held_out, config, str(tmp_path / "settled"), STORAGE)
    assert settled.reference == Teacher(model=str(tmp_path / "settled" / f"teacher-{digest[:12]}"))


def test_a_registered_teacher_of_embeddings_is_settled(
    registered: Callable[[int], tuple[str, str]], config: Tracking, tmp_path: Path
) -> None:
    version, digest = registered(5)
    live = {"teacher": {"model": f"models:/nuclei-teacher/{version}"}, "normalize": "none"}
    data = {
        "name": "run", "runs": str(tmp_path / "runs"), "data": {"tiles": "tiles"}, "tracking": config.model_dump(),
        "embeddings": {"live": live, "cached": {"responses": "cache"}},
    }  # fmt: skip
    given = validate(PretrainConfig, data, "the test")
    settled = fetch_sources(given)
    assert settled.embeddings["live"].teacher == Teacher(model=str(tmp_path / "runs" / f"teacher-{digest[:12]}"))
    assert settled.embeddings["cached"] == given.embeddings["cached"]


def test_an_unknown_version_is_refused(config: Tracking, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        materialize_teacher(Teacher(model="models:/nobody@champion"), config, str(tmp_path), STORAGE)
    assert "no version or alias 'champion' of 'nobody'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_said_before_anything_is_fetched(config: Tracking, runs: str) -> None:
    with pytest.raises(InputError, match=r"bucket of s3://nowhere/runs does not exist"):
        materialize_teacher(Teacher(model="models:/nuclei-teacher/1"), config, "s3://nowhere/runs", STORAGE)


def test_an_onnx_teacher_in_s3_has_its_weights_beside_it(runs: str, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(2, 3, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["tiles", "weight"], ["logits"])],
        "teacher",
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ("batch", 3, "height", "width"))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "a b+c.onnx", save_as_external_data=True, location="a b+c.onnx.data", size_threshold=0)
    card = {"classes": ["background", "nucleus"], "tile_mpp": 0.5, "tile_px": 32, "size_px": 32, "output": "logits"}
    (tmp_path / "a b+c.json").write_text(json.dumps(card | {"mean": [0, 0, 0], "std": [1, 1, 1]}))
    uri = join(runs, "a b+c.onnx")
    for name in ("a b+c.onnx", "a b+c.json", "a b+c.onnx.data"):
        write_bytes(join(runs, name), (tmp_path / name).read_bytes(), STORAGE)
    teacher = load_teacher(Teacher(onnx=uri), 0.5, STORAGE)
    tiles = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = np.einsum("kc,bchw->bkhw", weight[..., 0, 0], tiles.numpy() / np.float32(255))
    np.testing.assert_allclose(teacher.respond(tiles).numpy(), expected, atol=1e-5)
    assert teacher.digest == load_teacher(Teacher(onnx=str(tmp_path / "a b+c.onnx")), 0.5, STORAGE).digest
    write_bytes(join(runs, "a b+c.onnx.data"), bytes(23), STORAGE)
    with pytest.raises(InputError, match=r"has 23 bytes, and .* at 0 to 24; it was cut short"):
        load_teacher(Teacher(onnx=uri), 0.5, STORAGE)
    remove(join(runs, "a b+c.onnx.data"), STORAGE)
    with pytest.raises(InputError, match=r"a b\+c\.onnx\.data is missing, where .* keeps its weights"):
        load_teacher(Teacher(onnx=uri), 0.5, STORAGE)
