"""What reading slides in object storage costs: bytes, requests and CPU, by ranges and whole.

    python -m benchmarks.read_slides
    python -m benchmarks.read_slides --side 17664 --rounds 3

Makes slides that look like H&E, puts them on an S3 server of its own (SeaweedFS), and reads them through a proxy that
counts: a look at what the slide records, one region of 512 px, a tenth of the area cut into tiles, and all of it. Both
ways the pixels are OpenSlide's. Prints a JSON line for each measurement, a table, and as its last line one JSON object.
Shares of bytes are the reproducible figures; seconds are those of a server on the same machine.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.cutting.slides import SlideSpec, make_slide
from histill.config.common import Storage
from histill.config.ingest_tiles import SlideSource
from histill.local.s3 import REGION, s3_server
from histill.storage.control import write_bytes
from histill.tiles import slide_copies
from histill.tiles.slide_files import open_slide, peek_slide
from histill.tiles.slides import SlideRow
from histill.tiles.tiling import iter_tiles
from testbed.fault_proxy import FaultProxy, Faults, fault_proxy

BUCKET, SIDE, ROUNDS = "slides", 8_832, 1
TENTH = (0.3, 0.4, 0.7, 0.65)
WHOLE_BELOW = {"ranges": 0, "whole": 2**62}  # bytes of slides that are fetched whole
FORMATS = {"jpeg": "444", "deflate": "deflate"}


def look(uri: str, storage: Storage) -> None:
    """The slide's properties."""
    with peek_slide(uri, storage):
        pass


def read_region(uri: str, storage: Storage) -> None:
    """512 px in the middle."""
    with open_slide(uri, storage) as slide:
        width, height = slide.dimensions
        slide.read_rgb(width // 2, height // 2, 0, 512, 512)


def cut(uri: str, storage: Storage, region: tuple[float, float, float, float]) -> None:
    """The tiles of 256 px of a region."""
    source = SlideSource(paths=(uri,), mpp=0.5, min_tissue=0.0)
    with open_slide(uri, storage) as slide:
        for _ in iter_tiles(slide, SlideRow(uri, "case", None, region), source, 256):
            pass


TASKS: dict[str, Callable[[str, Storage], None]] = {
    "look": look,
    "region": read_region,
    "tenth": lambda uri, storage: cut(uri, storage, TENTH),
    "all": lambda uri, storage: cut(uri, storage, (0.0, 0.0, 1.0, 1.0)),
}


def measure(proxy: FaultProxy, size: int, task: str, uri: str, storage: Storage) -> dict[str, float]:
    """The share of a slide's bytes that a task reads, its requests, and its seconds of time and CPU."""
    before, begun, cpu = proxy.counts, time.perf_counter(), time.process_time()
    TASKS[task](uri, storage)
    after = proxy.counts
    return {
        "share": (after["bytes"] - before["bytes"]) / size,
        "requests": after["requests"] - before["requests"],
        "seconds": time.perf_counter() - begun,
        "cpu_s": time.process_time() - cpu,  # with the proxy's, which is the same for each byte
    }


def measurements(folder: Path, side: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Round by round, one way after the other."""
    with (
        s3_server(folder / "s3", BUCKET) as s3,
        patch.dict(os.environ, s3.environment()),
        fault_proxy(s3.endpoint, Faults(rate=0.0)) as proxy,
    ):
        storage = Storage(endpoint=proxy.endpoint, region=REGION)
        for name, coding in FORMATS.items():
            slide = make_slide(folder / "slides", SlideSpec(side, coding=coding))
            size, uri = slide.stat().st_size, f"s3://{BUCKET}/{name}.tiff"
            write_bytes(uri, slide.read_bytes(), storage)
            for number, task, way in itertools.product(range(rounds), TASKS, WHOLE_BELOW):
                if (task, way) == ("look", "whole"):  # which is never taken whole
                    continue
                with patch.object(slide_copies, "SMALL", WHOLE_BELOW[way]):
                    found = measure(proxy, size, task, uri, storage)
                yield {"format": name, "bytes": size, "task": task, "way": way, "round": number, **found}


def main() -> None:
    """Make the slides, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=SIDE, help="level-0 pixels of the slides")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measurements of each kind, to take medians of")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="read-slides-") as folder:
        (Path(folder) / "s3").mkdir()
        for row in measurements(Path(folder), arguments.side, arguments.rounds):
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(f"\n{table(rows)}\n")
    print(json.dumps(summarize(rows)))


def summarize(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The median of each figure, by format, task and way."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(f"{row['format']} {row['task']} {row['way']}", []).append(row)
    figures = ("share", "requests", "seconds", "cpu_s")
    return {
        kind: {figure: round(statistics.median(row[figure] for row in each), 4) for figure in figures}
        for kind, each in kinds.items()
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The medians, for people."""
    from tabulate import tabulate

    lines = [[kind, *figures.values()] for kind, figures in summarize(rows).items()]
    return tabulate(lines, headers=["", "share of bytes", "requests", "s", "CPU s"])


if __name__ == "__main__":
    main()
