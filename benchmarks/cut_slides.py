"""The cost of cutting slides into tiles: histill compared with a bare loop and other libraries.

    python -m benchmarks.cut_slides --quick
    python -m benchmarks.cut_slides --rounds 3 --out results/cut_slides.jsonl

Makes pyramidal slides that look like H&E, of JPEG or deflated tiles, and cuts 512 px tiles from them, at the slide's
own resolution and at a coarser one; where the slide's tiles are of that size, histill keeps their JPEGs. The bare loop
is OpenSlide's `read_region` and the same encoder on the same squares, on one thread; histill's figures include finding
the tissue and writing the tile set. Each measurement is a separate process, and the contenders take turns, so that
other load affects all of them. Prints a JSON line per measurement, a table, and as its last line one JSON object. CPU
milliseconds per tile count every process and are the reproducible figure; tiles/s also depends on other load.
Libraries that are not installed (`pip install ratiopath==1.0.3 hs2p fastslide tiffslide`) are left out with a message
on stderr.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.cutting.cases import CASES
from benchmarks.cutting.measure import MODULES, OURS
from benchmarks.cutting.slides import SlideSpec, make_slide

ROOT = Path(__file__).resolve().parents[1]
SIDE, QUICK_SIDE, SHORT_SIDE = 17_664, 8_704, 4_096  # level-0 pixels of the slides
FIGURES = ("cpu_ms", "tiles_per_s")
LIMIT_S = 900  # of one process


def run(name: str, case: str, slides: Path, side: int, work: Path) -> dict[str, Any]:
    """Measure one contender; its result, or {"missing": why}."""
    kind = CASES[case]
    slide, short = (make_slide(slides, SlideSpec(each, kind.tile, kind.coding)) for each in (side, SHORT_SIDE))
    scratch, result, log = work / "scratch", work / "result.json", work / "log.txt"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    result.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "benchmarks.cutting.measure", name, case, f"--slide={slide}", f"--short={short}",
        f"--scratch={scratch}", f"--result={result}",
    ]  # fmt: skip
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=env, stdout=output, stderr=output, timeout=LIMIT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = LIMIT_S
    if status or not result.exists():
        last = (log.read_text().strip().splitlines() or ["nothing was said"])[-1]
        return {"missing": f"it ended with status {status}: {last[:300]}"}
    values: dict[str, Any] = json.loads(result.read_text())
    return values


def measurements(
    rounds: int, names: list[str], cases: list[str], slides: Path, side: int, work: Path
) -> Iterator[dict[str, Any]]:
    """Round by round, case by case, one contender after the other."""
    absent: set[tuple[str, str]] = set()
    for number in range(rounds):
        for case in cases:
            for name in names:
                if (name, case) in absent:
                    continue
                result = run(name, case, slides, side, work)
                if "missing" in result:
                    absent.add((name, case))
                    print(f"{name} {case} is left out: {result['missing']}", file=sys.stderr, flush=True)
                else:
                    yield {"contender": name, "case": case, "round": number, **result}


def small_slide_s(slides: Path, work: Path) -> float:
    """Seconds from the command to a finished tile set of a small slide."""
    slide = make_slide(slides, SlideSpec(SHORT_SIDE))
    output = work / "small"
    shutil.rmtree(output, ignore_errors=True)
    command = [
        sys.executable, "jobs/ingest_tiles.py", f"output={output}", f"slides.paths=[{slide}]", "slides.mpp=0.5",
        "tile_px=512",
    ]  # fmt: skip
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    begun = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    return time.perf_counter() - begun


def ratios(rows: list[dict[str, Any]], figure: str, of: str, over: str, case: str) -> list[float]:
    """One contender's figure over another's, round by round."""
    values = {(row["contender"], row["case"], row["round"]): row[figure] for row in rows}
    rounds = {row["round"] for row in rows}
    pairs = [(values.get((of, case, each)), values.get((over, case, each))) for each in sorted(rounds)]
    return [one / other for one, other in pairs if one is not None and other is not None]


def median(values: list[float]) -> float | None:
    """Rounded; None of nothing."""
    return round(statistics.median(values), 3) if values else None


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Both figures of every contender, and in brackets the median of their ratios to the bare loop."""
    from tabulate import tabulate

    def cell(name: str, figure: str, case: str) -> str:
        values = [row[figure] for row in rows if (row["contender"], row["case"]) == (name, case)]
        if not values:
            return "-"
        spread = f" [{min(values):.3g}-{max(values):.3g}]" if len(values) > 1 else ""
        ratio = median(ratios(rows, figure, name, "bare", case))
        return f"{statistics.median(values):.3g}{spread}" + (f" ({ratio:.2f})" if ratio else "")

    heads = [f"{'CPU ms/tile' if figure == 'cpu_ms' else 'tiles/s'} {case}" for figure in FIGURES for case in CASES]
    lines = [[name, *(cell(name, figure, case) for figure in FIGURES for case in CASES)] for name in names]
    return tabulate(lines, headers=["(ratio to bare)", *heads], disable_numparse=True)


def main() -> None:
    """Make the slides, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller slides and one round, about 5 minutes")
    parser.add_argument("--side", type=int, help=f"level-0 pixels of the slides; {SIDE} unless --quick")
    parser.add_argument("--rounds", type=int, help="measurements of each kind, to take medians of; 3 unless --quick")
    parser.add_argument("--out", type=Path, help="also write the JSON lines here")
    parser.add_argument("--work", type=Path, help="where slides are kept for the next run; else temporary")
    parser.add_argument("--only", help="some contenders, separated by commas")
    parser.add_argument("--cases", help=f"some of {', '.join(CASES)}, separated by commas")
    arguments = parser.parse_args()
    side = arguments.side or (QUICK_SIDE if arguments.quick else SIDE)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    names = [name for name in MODULES if not arguments.only or name in arguments.only.split(",")]
    cases = [case for case in CASES if not arguments.cases or case in arguments.cases.split(",")]
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cut-slides-")))
        slides = arguments.work.resolve() if arguments.work else work / "slides"
        out = stack.enter_context(arguments.out.open("w")) if arguments.out else None
        for row in measurements(rounds, names, cases, slides, side, work):
            rows.append(row)
            line = json.dumps(row)
            print(line, flush=True)
            if out:
                print(line, file=out, flush=True)
        small = [small_slide_s(slides, work) for _ in range(rounds)]
    over_bare = {case: median(ratios(rows, "cpu_ms", "histill", "bare", case)) for case in CASES}
    summary = {
        "cpu_over_bare": over_bare["jpeg"],
        "cpu_over_bare_by_case": over_bare,
        "cpu_over_bare_by_openslide": median(ratios(rows, "cpu_ms", "histill_by_openslide", "bare", "jpeg")),
        "peers": {
            name: {case: median(ratios(rows, "cpu_ms", name, "bare", case)) for case in CASES}
            for name in names
            if name not in OURS
        },
        "two_cores_over_one": median(ratios(rows, "tiles_per_s", "histill", "histill_one_thread", "jpeg")),
        "small_slide_s": median(small),
    }
    print(f"\n{table(rows, names)}\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
