"""One contender in a process of its own: the seconds that it takes for a short and a long input."""

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.predicting import bare

BATCH = bare.BATCH
Run = Callable[[str, str, Path], int]


def predict_tiles(engine: str) -> Run:
    """histill's prediction of a tile set in its own process, by an engine."""

    def run(model: str, tiles: str, output: Path) -> int:
        return _predict(model=model, tiles=tiles, output=str(output), engine=engine, heatmaps=False)

    return run


def predict_slides(engine: str, *, keep_tiles: bool) -> Run:
    """histill's prediction of a slide, with its heatmaps."""

    def run(model: str, slide: str, output: Path) -> int:
        return _predict(model=model, slides=[slide], output=str(output), engine=engine, keep_tiles=keep_tiles)

    return run


def _predict(**keys: object) -> int:
    from histill.config.load import validate
    from histill.config.predict_tiles import PredictConfig
    from histill.predict.predict import predict

    return predict(validate(PredictConfig, keys | {"batch_size": BATCH, "workers": {"count": 0}}, "benchmark")).tiles


CONTENDERS: dict[str, dict[str, Run]] = {
    "tiles": {
        "bare": lambda model, tiles, output: bare.predict_tile_set(model, tiles),
        "eager": predict_tiles("torch"),
        "histill": predict_tiles("openvino"),
    },
    "slide": {
        "bare": lambda model, slide, output: bare.predict_slide(model, slide),
        "by tile set": predict_slides("torch", keep_tiles=True),
        "histill": predict_slides("openvino", keep_tiles=False),
    },
}
"""What tile sets and slides are predicted by; `eager` and `by tile set` are how it was before there were engines."""


def measure(kind: str, name: str, model: str, short: str, long: str, scratch: str) -> dict[str, float]:
    """CPU milliseconds for a tile and tiles/s: differences between a long and a short input, so that starts cancel.

    The short one is predicted twice, the first time as a warm-up.
    """
    import torch

    torch.set_num_threads(1)
    run = CONTENDERS[kind][name]
    found = {}
    for size, source in (("warm-up", short), ("short", short), ("long", long)):
        begun, cpu = time.perf_counter(), time.process_time()
        tiles = run(model, source, Path(scratch, size))
        found[size] = tiles, time.perf_counter() - begun, time.process_time() - cpu
    more, seconds, cpu_s = (long - short for short, long in zip(found["short"], found["long"], strict=True))
    return {"tiles": more, "cpu_ms": round(1000 * cpu_s / more, 3), "tiles_per_s": round(more / seconds, 1)}
