"""Choose what runs a model, and prove on real tiles that it answers like the model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor

from histill.artifacts.formats.compare import measure_difference
from histill.artifacts.formats.made import Answer
from histill.artifacts.formats.run_onnxruntime import run_onnxruntime
from histill.artifacts.formats.run_openvino import run_openvino
from histill.config.engine import ON_CPUS, EngineName, EngineOption, is_installed
from histill.engines.engine import Choice, Engine
from histill.engines.loaded_model import LoadedModel
from histill.engines.measure import find_quickest, measure_tile
from histill.engines.run_torch import run_torch
from histill.errors import InputError

LARGEST_DIFFERENCE = 1e-3
"""Of an engine's logits, or embeddings, from the model's."""
_MANY, _MOST_AT_ONCE = 10**9, 32
_EXPORT_S, _START_S = 60.0, 10.0  # that starting an engine may take, with and without an export


class _Unusable(Exception):
    """An engine does not run a model; says why."""


@dataclass(frozen=True)
class Work:
    """What an engine is going to do."""

    tiles: int  # that it will run
    batch_size: int  # the largest number of tiles at once
    threads: int  # of the CPU
    device: torch.device


@dataclass(frozen=True)
class _Measured:
    """An engine that answers like the model."""

    name: EngineName
    answer: Answer
    at_once: int
    seconds: float  # for a tile
    threads: int

    def describe(self) -> str:
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        milliseconds = f"{1000 * self.seconds:.1f} ms a tile"
        return f"{self.name} {version(self.name)} on {threads}, {milliseconds}, {self.at_once} at once"


def start_engine(asked: EngineOption, model: LoadedModel, tiles: Tensor, work: Work) -> Engine:
    """The engine that was asked for; with `auto` torch on a GPU and for few tiles, else the first that is quicker.

    Args:
        model: whose network is moved to the work's device.
        tiles: real ones by which engine and model are compared, [N, 3, S, S] in 0..255 on the CPU, at least one.

    Raises InputError when the engine asked for cannot run the model, or answers something else.
    """
    run = run_torch(model.network, work.device)
    if asked == "torch" or (asked == "auto" and work.device.type != "cpu"):
        return _keep_torch(run, work, "as asked for" if asked == "torch" else "on the GPU")
    begun = time.perf_counter()
    expected = run(tiles).cpu()
    seconds = (time.perf_counter() - begun) / len(tiles)
    if not expected.isfinite().all():
        fault = f"{model.title} answers nan or infinity to the first {len(tiles)} tiles"
        if asked == "auto":
            return _keep_torch(run, work, "as its answers are no numbers to compare another's with", [f"{fault}."])
        raise InputError(
            f"{fault}, so engine={asked} cannot be compared with it; look at the tiles, or train it again.",
            code="output-not-finite",
        )
    if asked == "auto":
        return _choose(model, run, seconds, tiles, expected, work)
    try:
        found = _start(asked, model, model.find_onnx(), tiles, expected, work)
    except _Unusable as fault:
        raise InputError(
            f"engine={asked} does not run {model.title} ({fault}); take engine=auto, or torch.",
            code="engine-unusable",
        ) from None
    return Engine(Choice(asked, found.describe()), found.answer, found.at_once)


def start_when_asked(asked: EngineOption, model: LoadedModel) -> Answer:
    """The same on a CPU, however many tiles there will be, by the first that are asked about; says which it is.

    Numbers of tiles are rounded up to 1, 2, 4 ... 32, and each has an engine of its own: the first ones may be few.
    """
    started: dict[int, Engine] = {}

    def answer(tiles: Tensor) -> Tensor:
        most = min(_MOST_AT_ONCE, 1 << (len(tiles) - 1).bit_length())
        if most not in started:
            work = Work(_MANY, most, torch.get_num_threads(), torch.device("cpu"))
            engine = start_engine(asked, model, tiles[:most], work)
            if engine.choice.name not in {each.choice.name for each in started.values()}:
                engine.choice.say()
            started[most] = engine
        return started[most](tiles)

    return answer


def _choose(
    model: LoadedModel, run: Answer, first_seconds: float, tiles: Tensor, expected: Tensor, work: Work
) -> Engine:
    """The first engine that is quicker than `run`, which is torch and took so long for one of the first tiles."""
    onnx = model.find_onnx()
    enough, seconds = 2 * (_EXPORT_S if onnx is None else _START_S), first_seconds
    if seconds * work.tiles >= enough:
        seconds = measure_tile(run, tiles, work.batch_size)  # less: the first answer takes the longest
    if seconds * work.tiles < enough:
        return _keep_torch(run, work, f"as starting another for {work.tiles} tiles would not pay")
    warnings, slower = list[str](), list[str]()
    for name in filter(is_installed, ON_CPUS):
        try:
            found = _start(name, model, onnx, tiles, expected, work)
        except _Unusable as fault:
            warnings.append(f"engine {name} does not run {model.title}, and the next one is taken ({fault}).")
            continue
        if found.seconds < seconds:
            about = f"{found.describe()}; torch took {1000 * seconds:.1f} ms"
            return Engine(Choice(name, about, warnings), found.answer, found.at_once)
        slower.append(found.describe())
    if slower:
        why = f"{1000 * seconds:.1f} ms a tile, as no other engine is quicker ({'; '.join(slower)})"
    else:
        why = f"as no other engine {'runs this model' if warnings else 'is installed'}"
    return _keep_torch(run, work, why, warnings)


def _keep_torch(run: Answer, work: Work, why: str, warnings: Sequence[str] = ()) -> Engine:
    return Engine(Choice("torch", f"torch, {why}", warnings), run, work.batch_size)


def _start(
    name: EngineName, model: LoadedModel, onnx: bytes | None, tiles: Tensor, expected: Tensor, work: Work
) -> _Measured:
    """The engine, once its answers to the tiles are those expected. Raises _Unusable if it gives none, or others."""
    try:
        build = partial(_build, name, onnx or model.make_onnx(), work.threads)
        answer, at_once, seconds = find_quickest(build, tiles, work.batch_size)
        engine = _Measured(name, answer, at_once, seconds, work.threads)
        gap = measure_difference(Engine(Choice(name, ""), answer, at_once), tiles, expected)
    except Exception as error:  # exporters and runtimes have no common one for what they cannot do
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise _Unusable(said or type(error).__name__) from error
    if gap > LARGEST_DIFFERENCE:
        raise _Unusable(
            f"its answers differ from the model's by {gap:.2g} on {len(tiles)} tiles, more than {LARGEST_DIFFERENCE:g}"
        )
    return engine


def _build(name: EngineName, onnx: bytes, threads: int, at_once: int) -> Answer:
    return run_openvino(onnx, threads, at_once) if name == "openvino" else run_onnxruntime(onnx, threads)
