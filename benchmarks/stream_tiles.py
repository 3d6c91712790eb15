"""The cost of streaming tiles from S3 into batches: histill compared with a bare loop and five other loaders.

    python -m benchmarks.stream_tiles --quick
    python -m benchmarks.stream_tiles --tiles 4096 --rounds 3 --out results/stream_tiles.jsonl

Makes H&E-like tiles (512 px JPEG), writes them to a local S3 server in each loader's own format, and reads them at full
size, at 128 px, and as a pair of both. Each measurement is a separate process, and the loaders take turns, so that
other load affects all of them. Prints a JSON line per measurement, a table, and as its last line
one JSON object. CPU milliseconds per tile count every process of the loader (not the server) and are the reproducible
figure; tiles/s also depends on other load. Loaders that are not installed are left out with a message on stderr.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "tiles"
CASES = ("full", "small", "pair")
LIMITED = {"histill_decoded": ("small",)}  # contenders that are not for every case
FIGURES = ("cpu_ms", "tiles_per_s")
QUICK_TILES = 1536
LIMIT_S = 900  # of one process


@dataclass(frozen=True)
class Bench:
    """The setup shared by all measurements."""

    work: Path
    tiles: Path
    env: dict[str, str]

    def process(self, *arguments: str) -> dict[str, Any]:
        """Run `benchmarks.loaders.measure`; its result, or {"missing": why} when it failed."""
        scratch = self.work / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)  # no measurement uses another's cache
        scratch.mkdir()
        result = self.work / "result.json"
        result.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "benchmarks.loaders.measure", *arguments, f"--tiles={self.tiles}",
            f"--bucket={BUCKET}", f"--scratch={scratch}", f"--result={result}",
        ]  # fmt: skip
        log = self.work / "log.txt"
        with log.open("w") as output:
            try:
                status = subprocess.run(
                    command, cwd=ROOT, env=self.env, stdout=output, stderr=output, timeout=LIMIT_S, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                status = LIMIT_S
        shutil.rmtree(scratch, ignore_errors=True)
        if status or not result.exists():
            lines = log.read_text().strip().splitlines() or ["nothing was said"]
            # the last unindented line says most: details may follow an error
            told = [line for line in lines if not line.startswith((" ", "}", ")"))] or lines
            return {"missing": f"{' '.join(arguments)} ended with status {status}: {told[-1][:300]}"}
        values: dict[str, Any] = json.loads(result.read_text())
        return values


def write_all(bench: Bench, wanted: set[str]) -> dict[str, str]:
    """Write the tiles to the bucket in the formats `wanted`; returns the reasons for formats that failed."""
    from benchmarks.loaders.measure import FORMATS

    missing = {}
    for name, form in FORMATS.items():
        done = bench.work / f"written-{form}"
        if form not in wanted or done.exists():
            continue
        begun = time.monotonic()
        result = bench.process("write", name)
        if "missing" in result:
            missing[form] = result["missing"]
            continue
        done.touch()
        print(f"wrote {form} in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return missing


def measurements(bench: Bench, rounds: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """Round by round, case by case, one loader after the other."""
    from benchmarks.loaders.measure import FORMATS

    forms = {name: FORMATS.get(name, FORMATS["histill"]) for name in names}
    missing = write_all(bench, set(forms.values()))
    absent = {name: missing[form] for name, form in forms.items() if form in missing}
    for name, why in absent.items():
        print(f"{name} is left out: {why}", file=sys.stderr, flush=True)
    for number in range(rounds):
        for case in CASES:
            for name in names:
                if name in absent or case not in LIMITED.get(name, CASES):
                    continue
                result = bench.process("read", name, case)
                if "missing" in result:
                    print(f"{name} {case} is left out: {result['missing']}", file=sys.stderr, flush=True)
                else:
                    yield {"contender": name, "case": case, "round": number, **result}


def check_same_tiles(rows: list[dict[str, Any]]) -> None:
    """Report loaders that delivered other pixels than the bare loop."""
    expected = {row["case"]: row["checksum"] for row in rows if row["contender"] == "bare"}
    for row in rows:
        if row["checksum"] != expected.get(row["case"], row["checksum"]):
            print(f"{row['contender']} {row['case']}: other pixels than the bare loop's", file=sys.stderr, flush=True)


def medians(rows: list[dict[str, Any]], figure: str, names: list[str]) -> dict[str, dict[str, float | None]]:
    """Contender -> case -> median of the rounds, None if there is none."""
    found: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = {
            case: [row[figure] for row in rows if (row["contender"], row["case"]) == (name, case)] for case in CASES
        }
        found[name] = {case: round(statistics.median(of), 3) if of else None for case, of in values.items()}
    return found


def table(summary: dict[str, dict[str, dict[str, float | None]]], names: list[str]) -> str:
    """Both figures of every contender, and in brackets their ratios to the bare loop."""
    from tabulate import tabulate

    def cell(figure: str, name: str, case: str) -> str:
        value, bare = summary[figure][name][case], summary[figure]["bare"][case]
        if value is None:
            return "-"
        shown = f"{value:.2f}" if figure == "cpu_ms" else f"{value:.0f}"
        return f"{shown} ({value / bare:.2f})" if bare else shown

    heads = [f"{'CPU ms/tile' if figure == 'cpu_ms' else 'tiles/s'} {case}" for figure in FIGURES for case in CASES]
    lines = [[name, *(cell(figure, name, case) for figure in FIGURES for case in CASES)] for name in names]
    return tabulate(lines, headers=["(ratio to bare)", *heads], disable_numparse=True)


@contextlib.contextmanager
def work_folder(wanted: Path | None, tiles: int) -> Iterator[Path]:
    """A persistent folder, one per number of tiles, or a temporary one."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="stream-tiles-") as name:
            yield Path(name)
    else:
        folder = wanted.resolve() / f"tiles-{tiles}"
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def main() -> None:
    """Make the tiles, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TILES} tiles and one round, under 5 minutes")
    parser.add_argument("--tiles", type=int, help="how many tiles, a multiple of 128; 4096 unless --quick")
    parser.add_argument("--rounds", type=int, help="measurements of each kind, to take medians of; 3 unless --quick")
    parser.add_argument("--out", type=Path, help="also write the JSON lines here")
    parser.add_argument("--work", type=Path, help="where tiles and server are kept for the next run; else temporary")
    parser.add_argument("--only", help="some contenders, separated by commas; the others are null")
    arguments = parser.parse_args()
    count = arguments.tiles or (QUICK_TILES if arguments.quick else 4096)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    if count < 512 or count % 128:
        parser.error(f"--tiles is {count}; it must be a multiple of 128 (two workers, batches of 64) and at least 512")

    from benchmarks.loaders.measure import MODULES
    from benchmarks.loaders.tiles import make_tiles
    from histill.local.s3 import s3_server

    names = list(MODULES)
    chosen = arguments.only.split(",") if arguments.only else names
    rows: list[dict[str, Any]] = []
    with work_folder(arguments.work, count) as work, contextlib.ExitStack() as stack:
        begun = time.monotonic()
        make_tiles(work / "jpeg", count, seed=0)
        print(f"{count} tiles after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        out = stack.enter_context(arguments.out.open("w")) if arguments.out else None
        server = stack.enter_context(s3_server(work / "s3", BUCKET))
        env = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")} | server.environment()
        for row in measurements(Bench(work, work / "jpeg", env), rounds, [name for name in names if name in chosen]):
            rows.append(row)
            line = json.dumps(row)
            print(line, flush=True)
            if out:
                print(line, file=out, flush=True)
    check_same_tiles(rows)
    summary = {figure: medians(rows, figure, names) for figure in FIGURES}
    print(f"\n{table(summary, names)}\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
