"""A model is exported without a registry: its files, what they are compared with, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

import histill
from histill.artifacts.checksums import CHECKSUMS_NAME, check_files
from histill.artifacts.formats.made import Made
from histill.artifacts.formats.table import FORMATS, Format
from histill.artifacts.model_folder import ModelCard, build, save
from histill.artifacts.signature import SIGNATURE_NAME
from histill.cli.main import main
from histill.errors import HistillError, InputError
from histill.tiles.manifest import Manifest

pytestmark = pytest.mark.unit

CARD = ModelCard(
    kind="classification", encoder="resnet_gn", decoder_channels=(), classes=("stroma", "tumour"), mean=(0.7, 0.5, 0.7),
    std=(0.2, 0.2, 0.2), tile_px=64, tile_mpp=0.5, size_px=64, tiles_digest="cd" * 32, train_cases=(), histill="0",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> str:
    """12 tiles without labels, of cases in every split."""
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=12, cases=12).uri


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    save(str(tmp_path / "model"), build(CARD), CARD)
    return str(tmp_path / "model")


def export(model: str, tiles: str, output: Path, **keys: Any) -> Any:
    return histill.export_model(model=model, tiles=tiles, split="train", output=str(output), **keys)


def test_a_model_is_exported_without_a_registry_and_without_labels(model: str, tiles: str, tmp_path: Path) -> None:
    output = tmp_path / "nuclei"
    done = export(model, tiles, output, formats=["onnx", "timm", "smp"], license="MIT")
    assert [each.format for each in done.formats if each.files] == ["onnx", "timm"]
    files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert {"model.onnx", "timm/config.json", "prepare_tile.py", "interface.json", "README.md"} < files.keys()
    checksums = files.pop(CHECKSUMS_NAME)
    check_files(files, checksums, "here")
    listed = {line.split("  ")[1] for line in checksums.decode().splitlines()}
    assert listed == files.keys()
    assert histill.load_model(str(output)).card.classes == CARD.classes
    readme = files["README.md"].decode()
    assert readme.startswith("---\nlibrary_name: histill\nlicense: mit\n")
    assert "\nmodel-index" not in readme  # it was not scored
    assert "\nOn " not in readme
    pixels = torch.rand(2, 3, 64, 64) * 255
    (said,) = onnxruntime.InferenceSession(files["model.onnx"]).run(None, {"pixels": pixels.numpy()})
    network = histill.load_model(model).network
    with torch.inference_mode():
        assert torch.allclose(torch.from_numpy(said), network(pixels), atol=1e-4)


def test_a_format_that_answers_otherwise_is_refused_and_nothing_is_written(
    model: str, tiles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Format(lambda subject: Made({"model.onnx": b""}, lambda seen: subject.model(seen) + 0.5))
    monkeypatch.setitem(FORMATS, "onnx", wrong)
    with pytest.raises(
        HistillError, match=r"^onnx of .* answers otherwise than the model: a difference of 0\.5"
    ) as caught:
        export(model, tiles, tmp_path / "out")
    assert caught.value.code == "export-differs"
    assert not (tmp_path / "out").exists()
    export(model, tiles, tmp_path / "out", max_difference=0.51)


def test_formats_of_other_models_are_refused_and_nothing_is_written(model: str, tiles: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^nothing was exported of .*model: smp \(smp has segmenters alone.*\); ask for "
    ):
        export(model, tiles, tmp_path / "out", formats=["smp"])
    assert not (tmp_path / "out").exists()


def test_no_signature_of_an_earlier_export_stays(model: str, tiles: str, tmp_path: Path) -> None:
    """It would be of another list of checksums."""
    (tmp_path / SIGNATURE_NAME).write_text("of another list")
    export(model, tiles, tmp_path, formats=["timm"])
    assert not (tmp_path / SIGNATURE_NAME).exists()
    assert (tmp_path / CHECKSUMS_NAME).exists()


def test_tiles_that_do_not_fit_are_refused(
    model: str, tiles: str, tmp_path: Path, tile_set: Callable[..., Manifest]
) -> None:
    small = tile_set(tmp_path / "small", tiles=4, cases=2, tile_px=32)
    with pytest.raises(InputError, match="cut the tiles like the training ones"):
        export(model, small.uri, tmp_path / "out")
    untrained = tile_set(tmp_path / "untrained", tiles=4, cases=2)
    with pytest.raises(InputError, match=r"^split 'train' of .* is empty .*; name another"):
        export(model, untrained.uri, tmp_path / "out")
    with pytest.raises(InputError, match="formats"):
        export(model, tiles, tmp_path / "out", formats=["onnx_int8"])


def test_the_command_lists_what_was_made(
    model: str, tiles: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"model={model}", f"tiles={tiles}", "split=train", f"output={tmp_path / 'out'}", "formats=[timm, smp]"]
    assert main(["export", *keys]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    assert [each["format"] for each in json.loads(line)["formats"]] == ["timm", "smp"]
    assert "timm/model.safetensors" in printed.err
    assert "skipped: smp has segmenters alone" in printed.err
