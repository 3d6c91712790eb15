#!/usr/bin/env bash
# `openslide.quickhash-1`, by which tools tell slides apart, is the same for one scan at two resolutions.
#
# Versions: OpenSlide 4.0.1 (openslide-bin 4.0.1.2, openslide-python 1.4.7), TIFF written by tifffile 2026.3.3.
# Expected: a hash that identifies a slide differs where what a reader gets differs: its microns per pixel, the pixels of
#   its full-resolution level.
# Seen: for a generic pyramidal TIFF only the smallest level's data and some text tags enter. A file whose resolution tag was
#   corrected from 0.5 to 0.25 um/px keeps its hash, and so does one whose level 0 was painted over (say to remove a
#   name) while its small level was left alone.
# Who it hurts: caches of tiles or predictions that are keyed by quickhash: after a corrected export they give the old answer.
# Way round: add size, resolution and a digest of the file (or its ETag) to the key.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openslide-bin==4.0.1.2 openslide-python==1.4.7 \
    tifffile==2026.3.3 numpy==2.4.6 2>"$work/pip.log" || { cat "$work/pip.log"; exit 2; }
"$work/venv/bin/python" - "$work" <<'PY'
import sys

import numpy as np
import openslide
import tifffile

rng = np.random.default_rng(0)
pixels = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
small = pixels[::2, ::2].copy()
painted = pixels.copy()
painted[100:200, 100:200] = 255
other = small.copy()
other[0, 0] ^= 255


def slide(name, full, half, mpp):
    path = f"{sys.argv[1]}/{name}.tiff"
    with tifffile.TiffWriter(path) as file:
        how = dict(tile=(256, 256), photometric="rgb", metadata=None)
        file.write(full, resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER", **how)
        file.write(half, subfiletype=1, **how)
    with openslide.OpenSlide(path) as opened:
        first = np.asarray(opened.read_region((0, 0), 0, opened.dimensions))[..., :3]
        # pixels per centimetre of the TIFF itself
        mpp_read = 1e4 / float(opened.properties["tiff.XResolution"])
        return opened.properties["openslide.quickhash-1"], mpp_read, first


made = {
    "as scanned": slide("a", pixels, small, 0.5),
    "resolution corrected": slide("b", pixels, small, 0.25),
    "level 0 painted over": slide("c", painted, small, 0.5),
    "small level changed": slide("d", pixels, other, 0.5),
}
base, _, first = made["as scanned"]
for name, (digest, mpp, level) in made.items():
    print(f"{name:21} quickhash-1 {digest[:12]}  {mpp:.2f} um/px  level 0 as scanned: {np.array_equal(level, first)}")
same = {name: digest == base for name, (digest, _, _) in made.items()}
as_described = same == {
    "as scanned": True, "resolution corrected": True, "level 0 painted over": True, "small level changed": False
} and abs(made["resolution corrected"][1] - 0.25) < 1e-6
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
