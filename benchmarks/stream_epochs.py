"""Memory of a reading worker over several epochs, cost of augmentation, and accuracy of scaled decoding.

    python -m benchmarks.stream_epochs [--tiles 1024]

One process on a local folder of 512 px tiles. Prints tables, and as its last line one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from tabulate import tabulate

from benchmarks.loaders.tiles import SIDE_PX, make_tiles
from benchmarks.train_step import tile_set
from histill.config.augment import Augment
from histill.config.common import Storage
from histill.stream.decode import decode_image
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import UPRIGHT, Views
from histill.tiles.manifest import Manifest

SMALL_PX, EPOCHS = 128, 5
VARIED = {
    "as they are": UPRIGHT,
    "flips": Augment(),
    "flips, color and stain": Augment(brightness=0.1, contrast=0.1, saturation=0.1, stain=0.05),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=1024)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stream-epochs-") as name:
        manifest = tile_set(Path(name), arguments.tiles)
        full = stream(manifest, SIDE_PX)
        memory = [resident_gb(full, epoch) for epoch in range(EPOCHS)]
        small = stream(manifest, SMALL_PX)
        cpu = {name: min(cpu_ms(small, augment) for _ in range(3)) for name, augment in VARIED.items()}
        images = [path.read_bytes() for path in make_tiles(Path(name) / "jpeg", 16, 0)]
        difference = {f"1/{by}": float(np.mean([scaled_difference(image, by) for image in images])) for by in (2, 4, 8)}
    print(tabulate(enumerate(memory), headers=["epoch", "resident GB, 512 px"], floatfmt=".2f"), end="\n\n")
    print(tabulate(cpu.items(), headers=["128 px", "CPU ms per tile"], floatfmt=".3f"), end="\n\n")
    print(tabulate(difference.items(), headers=["scale", "levels from area means"], floatfmt=".2f"), end="\n\n")
    print(json.dumps({"resident_gb": memory, "cpu_ms": cpu, "scaled_levels": difference}))


def stream(manifest: Manifest, side_px: int) -> TileStream:
    return TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, Storage()),
        split="train",
        views=Views(side_px),
        batch_size=64,
        worker=0,
        workers=1,
    )


def resident_gb(tiles: TileStream, epoch: int) -> float:
    """The peak resident memory of this process while it reads an epoch."""
    page = os.sysconf("SC_PAGE_SIZE")
    return max(
        int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e9 for _ in tiles.training_epoch(epoch, seed=0)
    )


def cpu_ms(tiles: TileStream, augment: Augment) -> float:
    begun = time.process_time()
    seen = sum(int(batch.valid.sum()) for batch in tiles.training_epoch(0, seed=0, augment=augment))
    return 1000 * (time.process_time() - begun) / seen


def scaled_difference(image: bytes, by: int) -> float:
    """Mean absolute difference, in levels, between DCT scaling and averages of `by` x `by` pixels."""
    side = SIDE_PX // by
    means = decode_image(image, SIDE_PX).astype(float).reshape(side, by, side, by, 3).mean((1, 3))
    return float(np.abs(decode_image(image, SIDE_PX, by) - means).mean())


if __name__ == "__main__":
    main()
