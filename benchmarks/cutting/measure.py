"""One contender in a separate process: cut a slide and measure.

python -m benchmarks.cutting.measure histill jpeg --slide S --short T --scratch FOLDER --result FILE
"""

import argparse
import importlib
import json
import resource
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = {
    "bare": "bare",
    "histill": "ours",
    "histill_one_thread": "ours_one_thread",
    "histill_by_openslide": "ours_by_openslide",
    "ratiopath": "ratiopath_ray",
    "hs2p": "hs2p_tar",
    "hs2p_tifffile": "hs2p_tifffile",
    "fastslide": "fastslide_loop",
    "tiffslide": "tiffslide_loop",
}
OURS = ("bare", "histill", "histill_one_thread", "histill_by_openslide")


@dataclass(frozen=True)
class Pass:
    """One slide cut, from the call until everything is written."""

    cpu_s: float
    elapsed_s: float
    tiles: int


def cut_once(contender: ModuleType, slide: Path, case: Any, out: Path) -> Pass:
    """Cut a slide once; ends the process when the number of tiles is not that of the squares."""
    from benchmarks.cutting.cases import find_squares
    from benchmarks.loaders.cpu import tree_cpu_s

    out.mkdir()
    squares = find_squares(slide, case, out)
    begun, cpu_begun = time.perf_counter(), tree_cpu_s()
    tiles = contender.cut(squares)
    found = Pass(tree_cpu_s() - cpu_begun, time.perf_counter() - begun, tiles)
    if tiles != len(squares.corners):
        raise SystemExit(f"{tiles} tiles came of {len(squares.corners)}")
    shutil.rmtree(out)
    return found


def measure(contender: ModuleType, slide: Path, short: Path, case: Any, scratch: Path) -> dict[str, Any]:
    """CPU milliseconds per tile and steady tiles/s.

    A short slide is cut, once as warm-up and twice for the mean, and then the long one: the figures are differences in
    time over the difference in tiles, so that imports, workers and connections cancel. What depends on the slide, such
    as finding the tissue, does not.
    """
    starts = [cut_once(contender, short, case, scratch / str(number)) for number in range(3)][1:]
    whole = cut_once(contender, slide, case, scratch / "whole")
    tiles = whole.tiles - starts[0].tiles
    cpu_s = whole.cpu_s - statistics.mean(start.cpu_s for start in starts)
    elapsed_s = whole.elapsed_s - statistics.mean(start.elapsed_s for start in starts)
    return {
        "cpu_ms": 1000 * cpu_s / tiles,
        "tiles_per_s": tiles / elapsed_s,
        "cpu_ms_with_start": 1000 * whole.cpu_s / whole.tiles,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "tiles": whole.tiles,
    }


def main() -> None:
    """Cut once, and store the result in --result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=tuple(MODULES))
    parser.add_argument("case")
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--short", type=Path, required=True, help="a small slide")
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder")
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()

    from benchmarks.cutting.cases import CASES

    try:
        contender = importlib.import_module(f"benchmarks.cutting.{MODULES[arguments.contender]}")
        result = measure(contender, arguments.slide, arguments.short, CASES[arguments.case], arguments.scratch)
    except (ImportError, NotImplementedError) as error:
        result = {"missing": f"{type(error).__name__}: {error}"}
    arguments.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
