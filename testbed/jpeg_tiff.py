"""Write pyramidal TIFFs of JPEG tiles, as scanners store slides; tifffile writes none without a codec library."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

RGB, YCBCR = 2, 6  # photometric interpretations
_ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED, _LONG8 = 2, 3, 4, 5, 7, 16
_SIZES = {_ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _UNDEFINED: 1, _LONG8: 8}
_CODES = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}


@dataclass(frozen=True)
class JpegLevel:
    """One level: its extent, and the JPEG of each tile of `tile` pixels, row by row; empty ones are not stored."""

    width: int
    height: int
    tile: int
    jpegs: Iterable[bytes]
    mpp: float
    photometric: int = YCBCR
    sampling: tuple[int, int] = (1, 1)
    abbreviated: bool = True  # tables are stored once, in the tag JPEGTables, which all tiles must share


def write_jpeg_tiff(path: Path, levels: Iterable[JpegLevel], description: str = "") -> Path:
    """Write a BigTIFF with a page for each level; tiles are written as they come, in flat memory."""
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        link = 8
        for number, level in enumerate(levels):
            tables, places = _write_tiles(file, level)
            dots = round(1e7 / level.mpp)  # of a thousandth, per cm
            tags = [
                (254, _LONG, [int(number > 0)]),
                (256, _LONG, [level.width]),
                (257, _LONG, [level.height]),
                (258, _SHORT, [8, 8, 8]),
                (259, _SHORT, [7]),
                (262, _SHORT, [level.photometric]),
                (270, _ASCII, description.encode() + b"\0"),
                (277, _SHORT, [3]),
                (282, _RATIONAL, [dots, 1000]),
                (283, _RATIONAL, [dots, 1000]),
                (284, _SHORT, [1]),
                (296, _SHORT, [3]),
                (322, _LONG, [level.tile]),
                (323, _LONG, [level.tile]),
                (324, _LONG8, [place for place, _ in places]),
                (325, _LONG, [size for _, size in places]),
                (347, _UNDEFINED, tables),
                (530, _SHORT, list(level.sampling)),
            ]
            link = _write_directory(file, link, [tag for tag in tags if tag[2]])
    return path


def split_tables(jpeg: bytes) -> tuple[bytes, bytes]:
    """A JPEG as its tables (DQT and DHT between SOI and EOI) and an abbreviated image without them."""
    tables, image, at = b"", b"", 2
    while jpeg[at + 1] != 0xDA:  # start of scan
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] in (0xDB, 0xC4):
            tables += jpeg[at:end]
        elif jpeg[at + 1] != 0xE0:  # JFIF's header would contradict other color spaces
            image += jpeg[at:end]
        at = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + image + jpeg[at:]


def _write_tiles(file: BinaryIO, level: JpegLevel) -> tuple[bytes, list[tuple[int, int]]]:
    """Write the tiles; returns the tables that they share, and the place and size of each."""
    shared, places = b"", []
    for jpeg in level.jpegs:
        if not jpeg:
            places.append((0, 0))
            continue
        tables, image = split_tables(jpeg)
        if level.abbreviated:
            if shared not in (b"", tables):
                raise ValueError("the tiles of a level have tables of their own")
            shared, jpeg = tables, image
        places.append((file.tell(), len(jpeg)))
        file.write(jpeg)
    return shared, places


def _write_directory(file: BinaryIO, link: int, tags: Sequence[tuple[int, int, Sequence[int] | bytes]]) -> int:
    """Write a directory behind its long values, and point to it from `link`; returns where its own link is."""
    entries = []
    for tag, kind, values in tags:
        if isinstance(values, bytes):
            data, count = values, len(values)
        elif kind == _RATIONAL:
            data, count = struct.pack("<II", *values), 1
        else:
            data, count = struct.pack(f"<{len(values)}{_CODES[kind]}", *values), len(values)
        if len(data) > 8:
            place = file.tell()
            file.write(data)
            data = struct.pack("<Q", place)
        entries.append(struct.pack("<HHQ", tag, kind, count) + data.ljust(8, b"\0"))
    place = file.tell()
    file.write(struct.pack("<Q", len(entries)) + b"".join(entries))
    end = file.tell()
    file.write(struct.pack("<Q", 0))
    file.seek(link)
    file.write(struct.pack("<Q", place))
    file.seek(0, 2)
    return end
