"""Model folders: save and load round-trip, and only safetensors files are ever loaded."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from histill.artifacts.model_folder import (
    CARD_NAME,
    WEIGHTS_NAME,
    ModelCard,
    build,
    copy,
    digest_of,
    load,
    read_card,
    resolve,
    save,
)
from histill.config.common import Storage
from histill.errors import InputError

pytestmark = pytest.mark.unit

STORAGE = Storage()
CARD = ModelCard(
    encoder="csat_tiny",
    decoder_channels=(16, 16, 8, 8, 8),
    classes=("background", "nucleus", "gland"),
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    tile_px=128,
    tile_mpp=0.5,
    size_px=64,
    tiles_digest="tiles",
    train_cases=(),
    teacher_digest="teacher",
    histill="0",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    target = tmp_path / "model"
    target.mkdir()
    save(str(target), build(CARD), CARD)
    return target


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_saved_model_comes_back(folder: Path) -> None:
    torch.manual_seed(0)
    model = build(CARD).eval()
    loaded, card, digest = load(str(folder), STORAGE)
    data = (folder / WEIGHTS_NAME).read_bytes()
    assert card == CARD.model_copy(update={"weights_sha256": hashlib.sha256(data).hexdigest()})
    assert card.mpp == 1.0
    assert not loaded.training
    tiles = torch.rand(2, 3, 64, 64) * 255
    with torch.inference_mode():
        logits = loaded(tiles)
        assert torch.equal(logits, model(tiles))
    assert logits.shape == (2, 3, 64, 64)
    assert load(str(folder), STORAGE)[2] == digest


def test_the_digest_changes_with_card_and_weights(folder: Path) -> None:
    before = load(str(folder), STORAGE)[2]
    save(str(folder), build(CARD), CARD)
    weights_changed = load(str(folder), STORAGE)[2]
    (folder / CARD_NAME).write_text(CARD.model_copy(update={"size_px": 128}).model_dump_json())
    assert len({before, weights_changed, load(str(folder), STORAGE)[2]}) == 3


def test_a_copy_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copy(str(folder), str(tmp_path / "copy"), STORAGE)
    assert load(str(tmp_path / "copy"), STORAGE)[2] == load(str(folder), STORAGE)[2]


def test_a_pickle_in_place_of_weights_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "run"
    (folder / WEIGHTS_NAME).write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(InputError, match=r"model\.safetensors is not a safetensors file"):
        load(str(folder), STORAGE)
    torch.save({"weights": torch.zeros(3), "trap": Trap(trap)}, folder / WEIGHTS_NAME)
    with pytest.raises(InputError, match=r"model\.safetensors is not a safetensors file"):
        load(str(folder), STORAGE)
    assert not trap.exists()


def test_truncated_weights_are_refused(folder: Path) -> None:
    data = (folder / WEIGHTS_NAME).read_bytes()
    for kept in (0, 4, len(data) // 2):
        (folder / WEIGHTS_NAME).write_bytes(data[:kept])
        with pytest.raises(InputError, match=r"model\.safetensors is not a safetensors file"):
            load(str(folder), STORAGE)


@pytest.mark.parametrize("change", [{"classes": ("background", "nucleus")}, {"encoder": "csat"}])
def test_weights_that_do_not_fit_the_card_are_refused(folder: Path, change: dict[str, object]) -> None:
    (folder / CARD_NAME).write_text(CARD.model_copy(update=change).model_dump_json())
    with pytest.raises(InputError, match=r"do not fit its model\.json") as caught:
        load(str(folder), STORAGE)
    assert "\n" not in str(caught.value)


def test_a_changed_byte_of_the_weights_fails_verification(folder: Path) -> None:
    """Of the last tensor, of the first, and of a tensor's name; a card of an older version has no digest to compare."""
    whole = (folder / WEIGHTS_NAME).read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for position in (len(whole) - 1, 8 + header, whole.index(b"decoder.blocks")):
        changed = bytearray(whole)
        changed[position] ^= 1
        (folder / WEIGHTS_NAME).write_bytes(changed)
        with pytest.raises(InputError, match=r"^model\.safetensors of .* is not the file that was written") as caught:
            load(str(folder), STORAGE)
        assert caught.value.code == "file-changed"
        assert "\n" not in str(caught.value)
    (folder / CARD_NAME).write_text(CARD.model_dump_json(exclude={"weights_sha256"}))
    (folder / WEIGHTS_NAME).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert load(str(folder), STORAGE)[1].weights_sha256 is None


def test_the_digest_of_a_model_is_that_of_older_versions(folder: Path) -> None:
    """The SHA-256 of the weights in the card does not count twice: a run's model keeps the digest of its version."""
    data = (folder / WEIGHTS_NAME).read_bytes()
    assert load(str(folder), STORAGE)[2] == digest_of(CARD, data)


def test_other_tensors_are_refused(folder: Path) -> None:
    (folder / CARD_NAME).write_text(CARD.model_dump_json())
    save_file({"weight": torch.zeros(3)}, folder / WEIGHTS_NAME)
    with pytest.raises(InputError, match="do not fit") as caught:
        load(str(folder), STORAGE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text", ["{}", "[]", '"text"', '{"encoder": 3}', json.dumps(CARD.model_dump() | {"color": "blue"})]
)
def test_a_card_of_another_form_is_refused(folder: Path, text: str) -> None:
    (folder / CARD_NAME).write_text(text)
    with pytest.raises(
        InputError, match=r"model\.json is not a model card of this version \(.*\); export the model again\.$"
    ):
        read_card(str(folder), STORAGE)


def test_an_unknown_encoder_in_the_card_is_refused(folder: Path) -> None:
    (folder / CARD_NAME).write_text(CARD.model_copy(update={"encoder": "csat_tinny"}).model_dump_json())
    with pytest.raises(InputError, match="csat_tinny"):
        load(str(folder), STORAGE)


@pytest.mark.parametrize("missing", [CARD_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=missing.replace(".", r"\.") + " is missing"):
        load(str(folder), STORAGE)


def test_a_finished_run_means_its_model(folder: Path, tmp_path: Path) -> None:
    assert resolve(str(folder), STORAGE) == str(folder)
    with pytest.raises(InputError, match=r"neither a model folder .* nor a finished run"):
        resolve(str(tmp_path), STORAGE)
    (tmp_path / "finished.json").write_text(json.dumps({"model": str(folder), "metrics": {}}))
    assert resolve(str(tmp_path), STORAGE) == str(folder)
