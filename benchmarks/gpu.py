"""What one GPU makes of histill's work: training steps, teacher passes, streams and decoding, and what limits each.

    python -m benchmarks.gpu [--minutes 9] [--out gpu.jsonl]
    PYTHONPATH=platform python -m benchmarks.gpu --device cpu --quick

Needs torch, timm, pandas and pyarrow, with what these install (torchvision, numpy, Pillow); run it from the root of the
repository with `platform` on PYTHONPATH where histill is not installed. Tiles are decoded by simplejpeg and OpenCV
where those are, else by Pillow; histill's own stream is measured where its dependencies are.

Each part is a process of its own, with a limit on its time, so that one that fails or hangs leaves the others. Prints a
JSON line per measurement, a table, and as its last line one JSON object. `peak` is the fraction of the card's bf16
FLOP/s by its data sheet, `busy` that of the time in which a kernel runs. What limits is one of `compute`; `memory`:
kernels move more than they compute; `launch`: kernels end before the next is launched; `decode`; `data`: the step waits
for tiles; `step`: tiles wait for it. `cores_to_feed` are the cores that decode as fast as the fastest step learns.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import torch

from benchmarks.gpu_runs import card, steps, streams
from benchmarks.gpu_runs.card import Row

ROOT = Path(__file__).parents[1]
DISTINCT, TILES = 512, 8192
QUICK_DISTINCT, QUICK_TILES = 2, 64
RESERVE_S = 15  # to print

Part = Callable[[Path, torch.device, bool], Iterator[Row]]


def _write_tiles(folder: Path, device: torch.device, quick: bool) -> Iterator[Row]:
    distinct, tiles = (QUICK_DISTINCT, QUICK_TILES) if quick else (DISTINCT, TILES)
    streams.write_shards(folder, distinct, tiles)
    size = sum(path.stat().st_size for path in streams.shards_in(folder))
    yield {"what": f"{tiles} tiles of 512 px", "kb_per_tile": round(size / tiles / 1000, 1)}


def _teacher(name: str, small: str) -> Part:
    return lambda _, device, quick: steps.measure_teacher(small if quick else name, 224, device, quick=quick)


PARTS: dict[str, tuple[float, Part]] = {
    "card": (40, lambda _, device, quick: card.measure_card(device, quick=quick)),
    "tiles": (60, _write_tiles),
    "step_224": (130, lambda _, device, quick: steps.measure_steps(224, device, quick=quick)),
    "step_112": (130, lambda _, device, quick: steps.measure_steps(112, device, quick=quick)),
    "stream": (80, lambda folder, _, quick: streams.measure_streams(folder, quick=quick)),
    "card_decode": (40, lambda folder, device, quick: streams.measure_card_decode(folder, device, quick=quick)),
    "fed_112": (50, lambda folder, device, quick: streams.measure_fed_steps(folder, 112, device, quick=quick)),
    "fed_224": (50, lambda folder, device, quick: streams.measure_fed_steps(folder, 224, device, quick=quick)),
    "resnet50": (60, _teacher("resnet50", "resnet18")),
    "vit_l": (70, _teacher("vit_large_patch16_224", "vit_tiny_patch16_224")),
}
"""The parts in order, each with the seconds after which it is stopped."""


def main() -> None:
    """Run the parts, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda (default), or cpu for a trial")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and no compiling; its figures mean nothing")
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together (9)")
    parser.add_argument("--only", help=f"some parts, separated by commas: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="also write the JSON lines here")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)  # this process runs it
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        for row in PARTS[arguments.part][1](arguments.folder, torch.device(arguments.device), arguments.quick):
            print(json.dumps(row), flush=True)
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; give --device cpu --quick to try the benchmark without one")
    chosen = arguments.only.split(",") if arguments.only else list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only names {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    begun, rows = time.monotonic(), []
    out = arguments.out.open("w") if arguments.out else None
    with tempfile.TemporaryDirectory(prefix="gpu-tiles-") as folder:
        for row in run_parts(chosen, Path(folder), arguments.device, arguments.quick, 60 * arguments.minutes):
            rows.append(row)
            for file in filter(None, (sys.stdout, out)):
                print(json.dumps(row), file=file, flush=True)
    print(f"\n{table(rows)}\n")
    print(json.dumps(summary(rows) | {"seconds": round(time.monotonic() - begun)}))


def run_parts(chosen: list[str], folder: Path, device: str, quick: bool, seconds: float) -> Iterator[Row]:
    """The rows of the parts as they come; for one that fails or is stopped, a last row that says why."""
    end = time.monotonic() + seconds - RESERVE_S
    for part in chosen:
        limit = min(PARTS[part][0], end - time.monotonic())
        if limit < 5:
            yield {"part": part, "failed": "no time was left"}
            continue
        command = [sys.executable, "-m", "benchmarks.gpu", f"--part={part}", f"--device={device}", f"--folder={folder}"]
        command += ["--quick"] if quick else []
        for row in run_guarded(command, limit):
            yield {"part": part} | row


def run_guarded(command: list[str], limit_s: float) -> Iterator[Row]:
    """The JSON lines that `command` prints; a process that fails or takes longer than `limit_s` adds a `failed` row."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        stopped = threading.Event()

        def stop() -> None:
            stopped.set()
            os.killpg(process.pid, signal.SIGKILL)  # with its workers

        timer = threading.Timer(limit_s, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
            status = process.wait()
        finally:
            timer.cancel()
        if stopped.is_set():
            yield {"failed": f"stopped after {limit_s:.0f} s"}
        elif status:
            yield {"failed": f"status {status}: {_last_line(errors)}"}


def _last_line(errors: TextIO) -> str:
    errors.seek(0)
    lines = [line for line in errors.read().splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1][:300] if lines else "nothing was said"


def table(rows: list[Row]) -> str:
    """A line per measurement, with why it failed if it did."""
    shown = ["part", "what", "batch", "tiles_per_s", "ms", "tflops", "peak", "busy", "limit", "failed"]
    return pd.DataFrame(rows).reindex(columns=shown).astype(object).fillna("").to_string(index=False)


def summary(rows: list[Row]) -> dict[str, Any]:
    """Tiles/s, share of the peak and limit of each measurement by its name; the fastest where batches differ."""
    kept = ("batch", "tiles_per_s", "peak", "busy", "limit", "of_alone", "cpu_ms", "tflops", "tb_s")
    found: dict[str, Any] = {}
    for row in rows:
        if "failed" not in row and row.get("tiles_per_s", 0) >= found.get(row["what"], {}).get("tiles_per_s", 0):
            found[row["what"]] = {key: row[key] for key in kept if row.get(key) is not None}
    name = next((row["what"] for row in rows if row["part"] == "card" and "what" in row), None)
    failed = {f"{row['part']}: {row.get('what', 'all')}": row["failed"] for row in rows if "failed" in row}
    return {"card": name, "measured": found, "cores_to_feed": cores_to_feed(rows), "failed": failed}


def cores_to_feed(rows: list[Row]) -> dict[str, float]:
    """By side in pixels, how many of the stream's cores keep up with the fastest training step."""

    def fastest(part: str, px: int) -> Row:
        of = [
            row for row in rows if row["part"].startswith(part) and f" {px} px" in row["what"] and "failed" not in row
        ]
        return max(of, key=lambda row: row["tiles_per_s"], default={})

    found = {px: (fastest("step", px), fastest("stream", px)) for px in (112, 224)}
    return {
        str(px): round(step["tiles_per_s"] / stream["tiles_per_s"] * stream["cores"], 1)
        for px, (step, stream) in found.items()
        if step and stream
    }


if __name__ == "__main__":
    main()
