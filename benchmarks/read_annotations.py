"""The time and memory that annotations of a million nuclei take to become labels and masks of tiles.

    python -m benchmarks.read_annotations
    python -m benchmarks.read_annotations --polygons 50000 --processes 1

Writes a GeoJSON as QuPath exports detections (12 corners each, class, measurements) of nuclei that cover a slide
evenly, reads it, and makes label and mask of all tiles of 256 px at 0.5 um/px (512 level-0 pixels) with `--threads`, as
one slide is cut. Prints as its last line one JSON object: seconds of each step, wall and CPU, and the peak of the
process's memory (RSS) in MiB before, after reading, and at the end.
"""

import argparse
import json
import math
import os
import random
import resource
import tempfile
import time
from functools import partial

from histill.cluster.threads import map_threads
from histill.config.annotations import Annotations
from histill.config.common import Storage
from histill.tiles.annotations import SlideAnnotations, read_annotations, use_annotations
from histill.tiles.masks import IGNORED
from histill.tiles.tiling import TILES_AT_ONCE, Squares

SIDE, PX = 512, 256  # of a tile, in level-0 pixels and its own
PER_TILE, CORNERS, RADIUS = 150, 12, 14.0  # nuclei, their corners, and level-0 pixels (3.5 um)
CLASSES = ("Tumor", "Stroma", "Lymphocyte", "Necrosis")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polygons", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    across = math.ceil(math.sqrt(arguments.polygons / PER_TILE))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "nuclei.geojson")
        write_nuclei(path, arguments.polygons, across * SIDE)
        found = {"polygons": arguments.polygons, "mb": round(os.path.getsize(path) / 1e6)}
        print(json.dumps(found | measure(path, across, arguments.threads)))


def write_nuclei(path: str, count: int, extent: int) -> None:
    """Write nuclei at random places of a square of `extent` level-0 pixels."""
    draw, turns = random.Random(0), [2 * math.pi * corner / CORNERS for corner in range(CORNERS + 1)]
    around = [(math.cos(turn), math.sin(turn)) for turn in turns]
    heads = [
        f'{{"type": "Feature", "properties": {{"objectType": "detection", "classification": {{"name": "{name}", '
        '"color": [200, 0, 0]}, "measurements": {"Detection probability": 0.9312, "Area µm^2": 61.575}}, '
        '"geometry": {"type": "Polygon", "coordinates": [['
        for name in CLASSES
    ]
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number in range(count):
            x, y, radius = draw.uniform(0, extent), draw.uniform(0, extent), RADIUS * draw.uniform(0.6, 1.4)
            ring = ", ".join(f"[{x + radius * across:.2f}, {y + radius * down:.2f}]" for across, down in around)
            file.write(f"{', ' if number else ''}{heads[number % len(heads)]}{ring}]]}}}}")
        file.write("]}")


def measure(path: str, across: int, threads: int) -> dict[str, float]:
    """Read the file, and draw all tiles."""
    before, begun = peak_mib(), clocks()
    annotations = use_annotations(read_annotations(path, Storage()), Annotations(masks=CLASSES, min_cover=0.01), (0, 0))
    read, reading = clocks(), peak_mib()
    places = tuple((column * SIDE, row * SIDE) for row in range(across) for column in range(across))
    runs = Squares(places, float(SIDE), 0.5).divide(TILES_AT_ONCE)
    drawn = list(map_threads(partial(draw_run, annotations=annotations), runs, threads))
    done = clocks()
    labeled, masked, pixels = (sum(each) for each in zip(*drawn, strict=True))
    return {
        "tiles": len(places),
        "labeled": labeled,
        "masked": masked,
        "share_annotated": round(pixels / (len(places) * PX**2), 4),
        "threads": threads,
        "read_s": round(read[0] - begun[0], 1),
        "draw_s": round(done[0] - read[0], 1),
        "total_s": round(done[0] - begun[0], 1),
        "read_cpu_s": round(read[1] - begun[1], 1),
        "draw_cpu_s": round(done[1] - read[1], 1),
        "mib_before": before,
        "mib_reading": reading,
        "mib_peak": peak_mib(),
    }


def draw_run(run: Squares, annotations: SlideAnnotations) -> tuple[int, int, int]:
    """Tiles with a label, tiles with a mask, and annotated pixels of a run of tiles."""
    near = run.near(annotations)
    found = [near.annotate(*corner, run.side, PX) for corner in run.corners]
    known = sum(count for each in found for kind, count in each.class_pixels.items() if kind != IGNORED)
    return sum(each.label is not None for each in found), sum(each.mask is not None for each in found), known


def clocks() -> tuple[float, float]:
    """Seconds of the wall and of the CPUs."""
    return time.perf_counter(), time.process_time()


def peak_mib() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
