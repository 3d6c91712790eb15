"""One contender in a separate process: write its data, or read and measure.

python -m benchmarks.loaders.measure write histill ...
python -m benchmarks.loaders.measure read histill full ...
"""

import argparse
import importlib
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = {
    "bare": "bare",
    "histill": "ours",
    "histill_decoded": "ours_decoded",
    "histill_ray": "ours_ray",
    "torch_dataloader": "torch_dataloader",
    "spdl": "spdl_pipeline",
    "webdataset": "webdataset_tars",
    "mosaic_streaming": "mosaic_mds",
    "litdata": "litdata_chunks",
}
FORMATS = {
    "histill": "parquet",
    "webdataset": "webdataset",
    "mosaic_streaming": "mds",
    "litdata": "litdata",
}
"""The writer of each format; the others read histill's."""
SHORT_TILES = 256
"""Tiles of the short set, which is read to measure a loader's fixed costs."""


@dataclass(frozen=True)
class Pass:
    """One pass over a set, from the call until everything is closed again."""

    cpu_s: float
    elapsed_s: float
    first_batch_s: float
    checksum: int


def read_once(batches: Callable[[str, Any, int], Iterator[Any]], case: str, target: Any, tiles: int) -> Pass:
    """Read every tile once; ends the process when a batch or the number of tiles is not as expected."""
    import torch

    from benchmarks.loaders.cases import BATCH, CASES
    from benchmarks.loaders.cpu import tree_cpu_s

    sides = CASES[case]
    grid = torch.tensor([[k, sides[0] - 1 - k] for k in range(0, sides[0] // 2, sides[0] // 8)]).flatten()
    first_batch_s, seen, checksum = 0.0, 0, 0
    begun, cpu_begun = time.perf_counter(), tree_cpu_s()
    for views in batches(case, target, tiles):
        first_batch_s = first_batch_s or time.perf_counter() - begun
        for view, side in zip(views, sides, strict=True):
            if view.dtype != torch.uint8 or tuple(view.shape) != (BATCH, 3, side, side):
                raise SystemExit(f"a batch is {view.dtype} {tuple(view.shape)}, not uint8 [{BATCH}, 3, {side}, {side}]")
        # a sum invariant to order and flips: the same tiles, each once, give the same number
        checksum += int(views[0][:, :, grid][:, :, :, grid].sum(dtype=torch.int64))
        seen += BATCH
    if seen != tiles:
        raise SystemExit(f"{seen} tiles came of {tiles}")
    return Pass(tree_cpu_s() - cpu_begun, time.perf_counter() - begun, first_batch_s, checksum)


def read(contender: ModuleType, case: str, target: Any, short: Any, scratch: Path, tiles: int) -> dict[str, Any]:
    """CPU milliseconds per tile and steady tiles/s.

    A loader that reads or decodes ahead has done part of the work when its first batch arrives, so measuring from the
    first batch to the last is too low, by a fifth and more in a short run. Therefore a short set is
    read and then the long one, both from the call to the end, and both figures are differences in time over the
    difference in tiles: imports, workers and connections cancel, and every tile's fetching and decoding counts. Both
    sets are read once before that, since a run of many epochs touches its memory for the first time only once, and the
    short one then twice, for the mean. Each pass has an empty folder for its cache.
    """
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    read_once(contender.batches, case, short(scratch / "0"), SHORT_TILES)
    cold = read_once(contender.batches, case, target(scratch / "1"), tiles)
    starts = [read_once(contender.batches, case, short(scratch / name), SHORT_TILES) for name in ("2", "3")]
    whole = read_once(contender.batches, case, target(scratch / "4"), tiles)
    cpu_s = whole.cpu_s - statistics.mean(start.cpu_s for start in starts)
    elapsed_s = whole.elapsed_s - statistics.mean(start.elapsed_s for start in starts)
    return {
        "cpu_ms": 1000 * cpu_s / (tiles - SHORT_TILES),
        "tiles_per_s": (tiles - SHORT_TILES) / elapsed_s,
        "tiles_per_s_with_start": tiles / cold.elapsed_s,
        "cpu_ms_with_start": 1000 * cold.cpu_s / tiles,
        "first_batch_s": cold.first_batch_s,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "checksum": whole.checksum,
    }


def read_epochs(contender: ModuleType, case: str, target: Any, tiles: int) -> dict[str, Any]:
    """The same figures for a loader that reads all epochs in one go: the first is its start, the others its speed."""
    import cv2
    import torch

    from benchmarks.loaders.cpu import tree_cpu_s

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    begun, cpu_begun = time.perf_counter(), tree_cpu_s()
    with contender.open_epochs(case, target) as batches:
        opened_s = time.perf_counter() - begun
        first = read_once(batches, case, target, tiles)
        start_cpu_s, start_s = tree_cpu_s() - cpu_begun, time.perf_counter() - begun
        others = [read_once(batches, case, target, tiles) for _ in range(1, contender.EPOCHS)]
    if {each.checksum for each in others} != {first.checksum}:
        raise SystemExit("a later epoch has other pixels than the first")
    cpu_s = statistics.mean(each.cpu_s for each in others)
    elapsed_s = statistics.mean(each.elapsed_s for each in others)
    return {
        "cpu_ms": 1000 * cpu_s / tiles,
        "tiles_per_s": tiles / elapsed_s,
        "tiles_per_s_with_start": tiles / start_s,
        "cpu_ms_with_start": 1000 * start_cpu_s / tiles,
        "first_batch_s": opened_s + first.first_batch_s,
        "first_batch_on_a_running_cluster_s": first.first_batch_s,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "checksum": first.checksum,
    }


def main() -> None:
    """Write or read once, and store the result in --result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "read"))
    parser.add_argument("contender", choices=tuple(MODULES))
    parser.add_argument("case", nargs="?")
    parser.add_argument("--tiles", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder")
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()

    from benchmarks.loaders.target import Target

    files = sorted(arguments.tiles.glob("*.jpg"))
    try:
        contender = importlib.import_module(f"benchmarks.loaders.{MODULES[arguments.contender]}")
    except ImportError as error:
        arguments.result.write_text(json.dumps({"missing": f"{type(error).__name__}: {error}"}))
        return

    def target(scratch: Path) -> Target:
        scratch.mkdir()
        return Target(arguments.bucket, contender.FORMAT, scratch)

    def short(scratch: Path) -> Target:
        scratch.mkdir()
        return Target(arguments.bucket, f"{contender.FORMAT}-short", scratch)

    result: dict[str, Any] = {}
    if arguments.action == "write":
        contender.write(files, target(arguments.scratch / "0"))
        contender.write(files[:SHORT_TILES], short(arguments.scratch / "1"))
    else:
        one_go = hasattr(contender, "open_epochs")
        result = (
            read_epochs(contender, arguments.case, target(arguments.scratch / "0"), len(files))
            if one_go
            else read(contender, arguments.case, target, short, arguments.scratch, len(files))
        )
    arguments.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
