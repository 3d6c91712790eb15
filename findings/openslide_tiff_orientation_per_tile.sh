#!/usr/bin/env bash
# A tiled TIFF with an Orientation tag is read as a jigsaw: each tile is mirrored within itself, and stays in its place.
#
# Versions: OpenSlide 4.0.1 (openslide-bin 4.0.1.2, openslide-python 1.4.7), TIFF written by tifffile 2026.3.3.
# Expected: the slide turned as the tag says, or the tag ignored, or the file refused. Any of the three keeps neighbouring
#   pixels together.
# Seen: OpenSlide reads generic tiled TIFF by libtiff's RGBA interface, which applies the tag to what it is asked for, and
#   it is asked tile by tile. So Orientation 2 flips every 128 px square, in place; the slide opens without an error, its
#   size is right, its colours are right, and its tissue is scrambled. Orientations 5 to 8 (a quarter turn) mirror as 1 to 4 do,
#   and never transpose. JPEG-compressed tiles are not touched at all.
# Who it hurts: slides converted from photographs or cameras by tools that keep the tag; a tissue detector sees nothing amiss.
# Way round: look at the tag (tifffile) before opening, and rewrite the pixels.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openslide-bin==4.0.1.2 openslide-python==1.4.7 \
    tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
"$work/venv/bin/python" - "$work" <<'PY'
import sys

import numpy as np
import openslide
import tifffile

SIDE, TILE = 256, 128
rng = np.random.default_rng(0)
pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
ramp = np.stack([np.add.outer(np.arange(SIDE), np.arange(SIDE)) // 2] * 3, -1).astype(np.uint8)  # survives JPEG
whole = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
whole |= {5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}
mirrors = [1, 2, 3, 4]


def read(image, orientation, **how):
    path = f"{sys.argv[1]}/{orientation}.tiff"
    tifffile.imwrite(path, image, tile=(TILE, TILE), photometric="rgb", extratags=[(274, "H", 1, orientation, True)], **how)
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]


def by_tile(image, turn):
    out = np.empty_like(image)
    for y in range(0, SIDE, TILE):
        for x in range(0, SIDE, TILE):
            out[y : y + TILE, x : x + TILE] = turn(image[y : y + TILE, x : x + TILE])
    return out


seen = {}
for orientation in range(1, 9):
    got = read(pixels, orientation)
    if np.array_equal(got, whole[orientation](pixels)):
        seen[orientation] = "whole slide as the tag says" if orientation > 1 else "as stored"
    elif np.array_equal(got, pixels):
        seen[orientation] = "tag ignored"
    else:
        found = [each for each in mirrors[1:] if np.array_equal(got, by_tile(pixels, whole[each]))]
        seen[orientation] = f"each tile by itself as orientation {found[0]}" if found else "something else"
    print(f"Orientation {orientation}, uncompressed: {seen[orientation]}")
jpeg = np.abs(read(ramp, 2, compression="jpeg", compressionargs={"level": 95}).astype(int) - ramp).max()
print(f"Orientation 2, JPEG: tag ignored (largest difference {jpeg})" if jpeg <= 8 else "Orientation 2, JPEG: turned")
as_described = seen[1] == "as stored" and jpeg <= 8 and all(
    seen[each] == f"each tile by itself as orientation {(each - 1) % 4 + 1}" for each in (2, 3, 4, 6, 7, 8)
) and seen[5] in ("tag ignored", "each tile by itself as orientation 1")
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
