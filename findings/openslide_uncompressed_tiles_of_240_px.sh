#!/usr/bin/env bash
# A sound uncompressed tiled TIFF opens as a slide and cannot be read, unless its tiles' bytes are a multiple of 1,024.
#
# Versions: OpenSlide 4.0.1 (openslide-bin 4.0.1.2, openslide-python 1.4.7), TIFF written and read by tifffile 2026.3.3.
# Expected: TIFF asks for tile sides that are multiples of 16, and nothing of their bytes. tifffile reads each of these
#   files back pixel by pixel.
# Seen: RGB tiles of 128, 256 and 512 px (multiples of 1,024 bytes) are read; of 16, 48, 240 and 272 px are not: the slide opens,
#   detect_format says generic-tiff, and the first read_region says that the tile has an invalid byte count, since 1,024 bytes
#   are expected to have been rounded up. The same pixels compressed (deflate) are read at each of these sides.
# Who it hurts: pipelines that write uncompressed intermediate slides with a model's tile size (240, 272, ...), and then take the
#   slide for damaged.
# Way round: compress, or take a tile side that is a multiple of 64.
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

pixels = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)


def read(side, compression):
    path = f"{sys.argv[1]}/{side}{compression}.tiff"
    tifffile.imwrite(path, pixels, tile=(side, side), photometric="rgb", compression=compression, metadata=None)
    assert np.array_equal(tifffile.imread(path), pixels)
    assert openslide.OpenSlide.detect_format(path) == "generic-tiff"
    with openslide.OpenSlide(path) as slide:
        try:
            got = np.asarray(slide.read_region((0, 0), 0, (256, 256)))[..., :3]
        except openslide.OpenSlideError as error:
            return str(error)
    return "as written" if np.array_equal(got, pixels[:256, :256]) else "other pixels"


seen = {}
for side in (16, 48, 128, 240, 256, 272, 512):
    plain, deflate = read(side, None), read(side, "deflate")
    seen[side] = (plain == "as written", deflate == "as written")
    print(f"{side:3} px, {side * side * 3:6} bytes, {side * side * 3 / 1024:7.2f} x 1,024: uncompressed: {plain}; deflate: {deflate}")
as_described = all(seen[side] == (side * side * 3 % 1024 == 0, True) for side in seen)
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
