#!/usr/bin/env bash
# The transparent grey of a PNG with 2 or 4 bits is lost: Pillow scales the pixels to 8 bits and not the key.
#
# Versions: Pillow 13.0.0; the PNG is written chunk by chunk, as the specification has it.
# Expected: tRNS of a greyscale PNG names a sample value of the image's own bit depth (PNG, third edition, 11.3.2.1); pixels
#   of that value are transparent, at 1, 2, 4 and 8 bits alike.
# Seen: at 8 bits they are. At 2 and 4 bits `convert("RGBA")` finds the key among samples that were already scaled to 0..255,
#   so the key 1 of a 4-bit image matches nothing (its pixels are 17), and each pixel comes out opaque. No warning.
# Who it hurts: overlays and masks of scanned slides that a tool has packed into few bits: "not scanned" becomes dark tissue.
# Way round: read bit depth and tRNS from the file's chunks, and make the alpha channel by hand.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
"$work/venv/bin/python" - <<'PY'
import io
import struct
import sys
import zlib

import numpy as np
from PIL import Image

SIDE, KEY = 8, 1


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(samples, bits):
    """A greyscale PNG of `bits` bits whose samples of value KEY are transparent."""
    rows = b""
    for row in samples:
        packed = np.unpackbits(row[:, None].astype(np.uint8), axis=1)[:, 8 - bits :].reshape(-1)
        rows += b"\0" + np.packbits(packed).tobytes()
    head = struct.pack(">IIBBBBB", SIDE, SIDE, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*each)
        for each in ((b"IHDR", head), (b"tRNS", struct.pack(">H", KEY)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


seen = {}
for bits in (1, 2, 4, 8):
    samples = np.random.default_rng(bits).integers(0, 2**bits, (SIDE, SIDE))
    samples[:4] = KEY
    image = Image.open(io.BytesIO(write_png(samples, bits)))
    image.load()
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    transparent, found = int((samples == KEY).sum()), int(((samples == KEY) & (alpha == 0)).sum())
    wrong = int(((samples != KEY) & (alpha == 0)).sum())
    seen[bits] = (found == transparent, wrong)
    print(f"{bits} bits: {found} of {transparent} transparent pixels are, {wrong} opaque ones are not (mode {image.mode})")
as_described = {bits: ok for bits, (ok, _) in seen.items()} == {1: True, 2: False, 4: False, 8: True}
print("as described" if as_described else "CHANGED: no longer as described above")
sys.exit(0 if as_described else 1)
PY
