"""Prediction on a CPU: histill compared with bare loops of the same engine, and with PyTorch in eager mode.

    python -m benchmarks.predict_tiles [--quick] [--rounds 3] [--work FOLDER] [--out results/predict_tiles.jsonl]

The model is a CSAT classifier with random weights that sees H&E-like tiles of 512 px at 112 and at 224 px. Tile sets
are predicted by histill with OpenVINO, by histill with eager PyTorch, and by a bare loop that decodes and runs it.
Slides are predicted to heatmaps by histill right from the file, by histill over a tile set with eager PyTorch (as it
was done before), and by a bare loop of OpenSlide's `read_region` and OpenVINO that writes nothing. All on one thread,
each measurement in a process of its own; the contenders take turns, so that other load affects all of them. Figures are
differences between a long and a short input, so that starts cancel. CPU milliseconds are the reproducible figure.

Prints a JSON line per measurement, a table, and as its last line one JSON object: medians of the ratios of CPU time, at
112 px for a slide over its bare loop (`over_bare`) and for a tile set over eager PyTorch (`over_eager`), and how many
times as fast 8-bit integers are (`int8_over_float`).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

SIDES = (112, 224)
TILES, SLIDES = (256, 4096), (4096, 35_328)  # short and long: tiles of a set, level-0 pixels of a slide's side
QUICK_TILES, QUICK_SLIDES = (256, 2048), (4096, 17_664)
T = TypeVar("T")


def main() -> None:
    """Make the inputs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller inputs and one round, about 10 minutes")
    parser.add_argument("--rounds", type=int, help="measurements of each kind, to take medians of; 3 unless --quick")
    parser.add_argument("--sides", default="112,224", help="at which the model sees the tiles, separated by commas")
    parser.add_argument("--work", type=Path, help="where the inputs are kept for the next run; else temporary")
    parser.add_argument("--out", type=Path, help="also write the JSON lines here")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sides = [int(side) for side in chosen.sides.split(",")]
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="predict-tiles-")))
        out = stack.enter_context(chosen.out.open("w")) if chosen.out else None
        kept = chosen.work.resolve() if chosen.work else work / "inputs"
        for row in list_measurements(kept, work, sides, rounds, quick=chosen.quick):
            rows.append(row)
            print(json.dumps(row), file=sys.stdout, flush=True)
            if out:
                print(json.dumps(row), file=out, flush=True)
        rounded = alone(_compare_int8, str(kept / f"model-{sides[0]}"))
    print(f"\n{draw_table(rows)}\n")
    print(json.dumps(summarize(rows, sides[0], rounded)))


def list_measurements(
    kept: Path, work: Path, sides: list[int], rounds: int, *, quick: bool
) -> Iterator[dict[str, Any]]:
    """Round by round, input by input, one contender after the other."""
    models = {side: alone(_make_model, kept, side) for side in sides}
    sets = [alone(_make_tile_set, kept, count) for count in (QUICK_TILES if quick else TILES)]
    slides = [alone(_make_slide, kept, side) for side in (QUICK_SLIDES if quick else SLIDES)]
    for number in range(rounds):
        for side in sides:
            for kind, (short, long) in (("tiles", sets), ("slide", slides)):
                for name in ("bare", "eager" if kind == "tiles" else "by tile set", "histill"):
                    with tempfile.TemporaryDirectory(dir=work) as scratch:
                        found = alone(_measure, kind, name, models[side], short, long, scratch)
                    yield {"kind": kind, "side": side, "contender": name, "round": number, **found}


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _make_model(folder: Path, side: int) -> str:
    from benchmarks.predicting.prepare import make_model

    return make_model(folder, side)


def _make_tile_set(folder: Path, count: int) -> str:
    from benchmarks.predicting.prepare import make_tile_set

    return make_tile_set(folder, count)


def _make_slide(folder: Path, side: int) -> str:
    from benchmarks.predicting.prepare import make_whole_slide

    return make_whole_slide(folder, side)


def _measure(*arguments: Any) -> dict[str, float]:
    from benchmarks.predicting.measure import measure

    return measure(*arguments)


def _compare_int8(model: str) -> dict[str, float] | str:
    from benchmarks.predicting.int8 import compare_int8

    return compare_int8(model)


def find_ratio(rows: list[dict[str, Any]], kind: str, side: int, over: str) -> float | None:
    """The median over the rounds of another contender's CPU time over histill's; above 1 histill takes less."""
    values = {
        (row["contender"], row["round"]): row["cpu_ms"] for row in rows if (row["kind"], row["side"]) == (kind, side)
    }
    rounds = {number for _, number in values}
    ratios = [values[over, number] / values["histill", number] for number in rounds]
    return round(statistics.median(ratios), 3) if ratios else None


def summarize(rows: list[dict[str, Any]], side: int, rounded: dict[str, float] | str) -> dict[str, Any]:
    """The last line; `rounded` are the figures of 8-bit integers, or why there are none."""
    sides = sorted({row["side"] for row in rows})
    figures: dict[str, Any] = {
        "over_bare": find_ratio(rows, "slide", side, "bare"),
        "over_eager": find_ratio(rows, "tiles", side, "eager"),
        "int8_over_float": None if isinstance(rounded, str) else round(rounded["int8_over_float"], 3),
    }
    figures["int8"] = rounded if isinstance(rounded, str) else {name: round(each, 3) for name, each in rounded.items()}
    for each in sides:
        figures[f"at_{each}_px"] = {
            "tiles_over_bare": find_ratio(rows, "tiles", each, "bare"),
            "tiles_over_eager": find_ratio(rows, "tiles", each, "eager"),
            "slide_over_bare": find_ratio(rows, "slide", each, "bare"),
            "slide_over_tile_set": find_ratio(rows, "slide", each, "by tile set"),
        }
    return figures


def draw_table(rows: list[dict[str, Any]]) -> str:
    """The medians of each contender."""
    from tabulate import tabulate

    lines = []
    for key in dict.fromkeys((row["kind"], row["side"], row["contender"]) for row in rows):
        mine = [row for row in rows if (row["kind"], row["side"], row["contender"]) == key]
        lines.append([*key, *(statistics.median(row[name] for row in mine) for name in ("cpu_ms", "tiles_per_s"))])
    return tabulate(lines, headers=["", "side", "by", "CPU ms/tile", "tiles/s"])


if __name__ == "__main__":
    main()
