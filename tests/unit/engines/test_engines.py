"""What runs a model answers as the model does, is chosen by what it saves, and is refused when it answers otherwise."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import histill.engines.measure
import histill.engines.start
from histill.artifacts.formats.pooling import pool_by_products
from histill.artifacts.formats.run_openvino import run_openvino
from histill.artifacts.formats.subject import Subject
from histill.artifacts.model_folder import ONNX_NAME, ModelCard, load
from histill.config.common import Storage
from histill.config.engine import ON_CPUS, EngineName, check_installed
from histill.engines.engine import Engine
from histill.engines.loaded_model import LoadedModel
from histill.engines.measure import find_quickest
from histill.engines.start import Work, start_engine, start_when_asked
from histill.errors import InputError

pytestmark = pytest.mark.unit

SIDE = 32
MANY, FEW = 10**9, 10
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiles() -> Tensor:
    """Seven, so that the last part of them is not a full one."""
    return torch.randint(0, 256, (7, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, write_small_model: Callable[[str, Path], str], node: Storage
) -> Callable[..., LoadedModel]:
    """`models(kind)`: a small model, whose export is kept on the node."""

    def make(kind: str = "classification", folder: Path | None = None) -> LoadedModel:
        where = write_small_model(kind, folder or tmp_path_factory.mktemp("model"))
        return LoadedModel(where, *load(where, node), node)

    return make


def start(asked: str, model: LoadedModel, tiles: Tensor, expected: int = MANY) -> Engine:
    return start_engine(asked, model, tiles, Work(expected, 32, 1, CPU))  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["torch", *ON_CPUS])
@pytest.mark.parametrize("kind", ["classification", "segmentation", "encoder"])
def test_every_engine_answers_as_the_model_in_float64(
    models: Callable[..., LoadedModel], tiles: Tensor, kind: str, engine: EngineName
) -> None:
    model = models(kind)
    with torch.inference_mode():
        expected = copy.deepcopy(model.network).double()(tiles.double()).float()
    started = start(engine, model, tiles)
    assert started.choice.name == engine
    for part in (slice(None), slice(1), slice(2, None)):
        found = started(tiles[part])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected[part], atol=1e-4, rtol=1e-4)


def time_engines(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Let what runs a model take so long for a tile; 0.5 s where nothing is said."""

    def timed(run: Callable[..., Any], took: float) -> Callable[..., Any]:
        def start_timed(*arguments: object) -> Callable[[Tensor], Tensor]:
            answer = run(*arguments)

            def answer_timed(tiles: Tensor) -> Tensor:
                found: Tensor = answer(tiles)
                return found

            answer_timed.took = took  # type: ignore[attr-defined]
            return answer_timed

        return start_timed

    for name in ("torch", *ON_CPUS):
        run = getattr(histill.engines.start, f"run_{name}")
        monkeypatch.setattr(histill.engines.start, f"run_{name}", timed(run, seconds.get(name, 0.5)))
    for module in (histill.engines.measure, histill.engines.start):
        monkeypatch.setattr(module, "measure_tile", lambda answer, tiles, at_once: answer.took, raising=False)


def test_few_tiles_are_run_by_torch_and_many_by_what_is_quicker(
    models: Callable[..., LoadedModel], tiles: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_engines(monkeypatch, torch=1.0)
    model = models()
    assert start("auto", model, tiles, FEW).choice.about == "torch, as starting another for 10 tiles would not pay"
    choice = start("auto", model, tiles).choice
    assert choice.name == "openvino"
    assert choice.about.startswith("openvino 20")
    assert " ms a tile, " in choice.about
    assert not choice.warnings


@pytest.mark.parametrize(
    ("openvino", "onnxruntime", "chosen"), [(0.9, 0.5, "openvino"), (1.1, 0.5, "onnxruntime"), (1.1, 1.2, "torch")]
)
def test_what_is_not_quicker_than_torch_is_not_taken(
    models: Callable[..., LoadedModel], tiles: Tensor, monkeypatch: pytest.MonkeyPatch,
    openvino: float, onnxruntime: float, chosen: str,
) -> None:  # fmt: skip
    time_engines(monkeypatch, torch=1.0, openvino=openvino, onnxruntime=onnxruntime)
    choice = start("auto", models(), tiles).choice
    assert (choice.name, choice.warnings) == (chosen, [])
    if chosen == "torch":
        assert choice.about.startswith("torch, 1000.0 ms a tile, as no other engine is quicker (openvino 20")
        assert "; onnxruntime 1." in choice.about


def test_the_time_that_torch_takes_to_warm_up_is_no_reason_for_another_engine(
    models: Callable[..., LoadedModel], tiles: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its first answer alone it would take 150 s, and an engine is worth starting for 120."""
    calls: list[int] = []

    def run_torch(*_: object) -> Callable[[Tensor], Tensor]:
        def answer(tiles: Tensor) -> Tensor:
            time.sleep(0 if calls else 0.35)
            calls.append(len(tiles))
            return torch.zeros(len(tiles), 2)

        return answer

    monkeypatch.setattr(histill.engines.start, "run_torch", run_torch)
    assert "for 3000 tiles would not pay" in start("auto", models(), tiles, 3000).choice.about


def test_a_model_that_answers_nan_is_not_blamed_on_an_engine(models: Callable[..., LoadedModel], tiles: Tensor) -> None:
    model = models()
    with torch.no_grad():
        next(model.network.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match=r"answers nan or infinity to the first 7 tiles, so engine=openvino") as raised:
        start("openvino", model, tiles)
    assert raised.value.code == "output-not-finite"
    choice = start("auto", model, tiles).choice
    assert (choice.name, len(choice.warnings)) == ("torch", 1)
    assert choice.warnings[0].endswith("answers nan or infinity to the first 7 tiles.")


def test_an_engine_that_is_asked_about_one_tile_and_then_many(
    models: Callable[..., LoadedModel], tiles: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook: what comes first does not decide how many are run at once later."""
    model, seen = models(), list[int]()
    run = histill.engines.start.run_onnxruntime

    def counted(*arguments: Any) -> Callable[[Tensor], Tensor]:
        answer = run(*arguments)

        def count(tiles: Tensor) -> Tensor:
            seen.append(len(tiles))
            return answer(tiles)

        return count

    monkeypatch.setattr(histill.engines.start, "run_onnxruntime", counted)
    answer = start_when_asked("onnxruntime", model)
    with torch.inference_mode():
        expected = model.network(tiles.float())
    for part in (slice(1), slice(None)):
        torch.testing.assert_close(answer(tiles[part]), expected[part], atol=1e-4, rtol=1e-4)
    seen.clear()
    answer(tiles)
    assert max(seen) >= 4
    seen.clear()
    answer(tiles[:1])
    assert seen == [1]


def test_a_gpu_is_for_torch(models: Callable[..., LoadedModel], tiles: Tensor) -> None:
    model = models()
    model.network.to = lambda device: model.network  # type: ignore[method-assign, assignment]
    engine = start_engine("auto", model, tiles, Work(MANY, 32, 1, torch.device("cuda")))
    assert (engine.choice.name, engine.choice.about) == ("torch", "torch, on the GPU")


def spoil(monkeypatch: pytest.MonkeyPatch, engine: str, by: float) -> None:
    """Let an engine answer a little more than it should."""
    name = f"run_{engine}"
    run = getattr(histill.engines.start, name)

    def spoilt(*arguments: object) -> Callable[[Tensor], Tensor]:
        answer = run(*arguments)

        def answer_more(tiles: Tensor) -> Tensor:
            found: Tensor = answer(tiles)
            return found + by

        answer_more.took = 0.5  # type: ignore[attr-defined]
        return answer_more

    monkeypatch.setattr(histill.engines.start, name, spoilt)


@pytest.mark.parametrize("by", [2e-3, float("nan")])
def test_an_engine_with_other_answers_is_refused_and_the_next_one_taken(
    models: Callable[..., LoadedModel], tiles: Tensor, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    model = models()
    time_engines(monkeypatch, torch=1.0)
    spoil(monkeypatch, "openvino", by)
    with pytest.raises(
        InputError, match=r"^engine=openvino does not run .* \(its answers differ from .*; take"
    ) as raised:
        start("openvino", model, tiles)
    assert raised.value.code == "engine-unusable"
    choice = start("auto", model, tiles).choice
    assert choice.name == "onnxruntime"
    (warning,) = choice.warnings
    assert warning.startswith(
        f"engine openvino does not run {model.uri}, and the next one is taken (its answers differ"
    )
    spoil(monkeypatch, "onnxruntime", by)
    choice = start("auto", model, tiles).choice
    assert (choice.name, choice.about, len(choice.warnings)) == (
        "torch",
        "torch, as no other engine runs this model",
        2,
    )


def test_a_difference_below_the_limit_is_none(
    models: Callable[..., LoadedModel], tiles: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "openvino", 5e-4)
    assert start("openvino", models(), tiles).choice.name == "openvino"


def test_a_model_that_cannot_be_exported_is_run_by_torch(
    models: Callable[..., LoadedModel], tiles: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(self: Subject) -> bytes:
        raise RuntimeError("no such operator")

    model = models(folder=tmp_path)
    other = LoadedModel(model.uri, model.network, model.card, "another digest", model.storage)
    monkeypatch.setattr(Subject, "onnx", property(refuse))
    choice = start("auto", other, tiles).choice
    assert (choice.name, len(choice.warnings)) == ("torch", 2)
    assert "(no such operator)" in choice.warnings[0]
    with pytest.raises(InputError, match=r"^engine=onnxruntime does not run .* \(no such operator\); take engine=auto"):
        start("onnxruntime", other, tiles)


def test_a_model_is_exported_once_on_a_node_and_not_at_all_if_its_folder_holds_the_file(
    models: Callable[..., LoadedModel], tiles: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = models()
    start("onnxruntime", model, tiles)

    def refuse(self: Subject) -> bytes:
        raise AssertionError("it is exported again")

    monkeypatch.setattr(Subject, "onnx", property(refuse))
    assert start("onnxruntime", model, tiles).choice.name == "onnxruntime"
    (tmp_path / ONNX_NAME).write_bytes(model.make_onnx())
    given = LoadedModel(str(tmp_path), model.network, model.card, "another digest", Storage())
    assert start("onnxruntime", given, tiles).choice.name == "onnxruntime"
    (tmp_path / ONNX_NAME).write_bytes(b"other")
    with pytest.raises(InputError, match="engine=onnxruntime does not run"):
        start("onnxruntime", given, tiles)


@pytest.mark.parametrize(("times", "chosen"), [([3, 2, 2.5, 1], 8), ([3, 2, 1.5, 1], 20), ([3, 2.99, 1, 1], 4)])
def test_tiles_at_once_are_doubled_as_long_as_that_saves_time(
    monkeypatch: pytest.MonkeyPatch, tiles: Tensor, times: list[float], chosen: int
) -> None:
    took = dict(zip((4, 8, 16, 20), times, strict=True))
    monkeypatch.setattr(histill.engines.measure, "measure_tile", lambda answer, tiles, at_once: took[at_once])
    assert find_quickest(lambda at_once: lambda tiles: tiles, tiles, 20)[1:] == (chosen, took[chosen])


def test_an_engine_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histill.config.engine.is_installed", lambda name: name != "openvino")
    check_installed("auto")
    check_installed("onnxruntime")
    with pytest.raises(InputError, match=r"needs the package openvino, .*`pip install 'histill\[openvino\]'`"):
        check_installed("openvino")


@pytest.mark.parametrize(
    ("inside", "wanted"),
    [((4, 4), (7, 7)), ((9, 5), (7, 7)), ((14, 7), (7, 7)), ((3, 8), (2, 3)), ((9, 5), 4), ((9, 5), (4, None))],
)
def test_pooling_by_products_is_adaptive_pooling(inside: tuple[int, int], wanted: int | tuple[int, int | None]) -> None:
    features = torch.randn(2, 3, *inside, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.adaptive_avg_pool2d(features, wanted)
    torch.testing.assert_close(pool_by_products(features, wanted), expected, rtol=1e-12, atol=1e-12)


def test_windows_of_unequal_sizes_are_pooled_alike_by_openvino(tiles: Tensor) -> None:
    """OpenVINO 2026.4.1 takes a map of the windows' sizes for a part of the kernel behind it."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Conv2d(3, 2, 7, padding=3)

        def forward(self, pixels: Tensor) -> Tensor:
            found: Tensor = self.kernel(nn.functional.adaptive_avg_pool2d(pixels[..., :4, :4] / 255, 7))
            return found

    torch.manual_seed(0)
    model = Pooled().eval()
    card = ModelCard(
        kind="classification", encoder="none", decoder_channels=(), classes=("a", "b"), mean=(0.5,) * 3, std=(0.2,) * 3,
        tile_px=SIDE, tile_mpp=0.5, size_px=SIDE, tiles_digest="tiles", train_cases=(), histill="0",
    )  # fmt: skip
    with torch.inference_mode():
        expected = model(tiles.float())
    torch.testing.assert_close(run_openvino(Subject(model, card).onnx, 1, 7)(tiles), expected, rtol=1e-5, atol=1e-5)
