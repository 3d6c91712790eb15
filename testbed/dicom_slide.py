"""Write whole slide images as DICOM files, with no more in them than OpenSlide asks for."""

import struct
from pathlib import Path

import numpy as np


def write_dicom_slide(folder: Path, pixels: np.ndarray, mpp: float = 0.5) -> list[str]:
    """Write uint8 RGB [H, W, 3] as a file for each level of 1, 1/2 and 1/4 into a new folder; returns their paths."""
    folder.mkdir()
    paths = [folder / f"level-{number}.dcm" for number in range(3)]
    for number, path in enumerate(paths):
        level = np.ascontiguousarray(pixels[:: 2**number, :: 2**number])
        path.write_bytes(dicom_instance(level, mpp * 2**number, number))
    return [str(path) for path in paths]


def dicom_instance(pixels: np.ndarray, mpp: float, number: int, series: str = "1.2.3") -> bytes:
    """One level of a whole slide image as a DICOM file (PS3.10, explicit little endian), one frame of uint8 RGB.

    The attributes are those of PS3.3 A.32.8 that OpenSlide asks for.
    """
    height, width = pixels.shape[:2]
    kind, name = b"1.2.840.10008.5.1.4.1.1.77.1.6", f"{series}.{number}".encode()

    def element(tag: int, representation: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2) if representation in (b"UI", b"OB") else b" " * (len(value) % 2)
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + representation
        long = representation in (b"OB", b"SQ")
        return head + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))) + value

    def sequence(tag: int, *elements: bytes) -> bytes:
        item = b"".join(elements)
        return element(tag, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item)

    def short(tag: int, value: int) -> bytes:
        return element(tag, b"US", struct.pack("<H", value))

    def long(tag: int, value: int) -> bytes:
        return element(tag, b"UL", struct.pack("<I", value))

    meta = element(0x00020002, b"UI", kind) + element(0x00020003, b"UI", name)
    meta += element(0x00020010, b"UI", b"1.2.840.10008.1.2.1")
    spacing = b"\\".join([f"{mpp / 1000:.6f}".encode()] * 2)
    return b"".join(
        [
            bytes(128) + b"DICM" + long(0x00020000, len(meta)) + meta,
            element(0x00080008, b"CS", b"DERIVED\\PRIMARY\\VOLUME\\" + (b"RESAMPLED" if number else b"NONE")),
            element(0x00080016, b"UI", kind) + element(0x00080018, b"UI", name) + element(0x00080060, b"CS", b"SM"),
            element(0x0020000E, b"UI", series.encode()) + element(0x00200052, b"UI", f"{series}.9".encode()),
            element(0x00209311, b"CS", b"TILED_FULL"),
            short(0x00280002, 3) + element(0x00280004, b"CS", b"RGB") + short(0x00280006, 0),
            element(0x00280008, b"IS", b"1") + short(0x00280010, height) + short(0x00280011, width),
            short(0x00280100, 8) + short(0x00280101, 8) + short(0x00280102, 7) + short(0x00280103, 0),
            long(0x00480006, width) + long(0x00480007, height),
            sequence(0x00480105, element(0x00480106, b"SH", b"1")),
            long(0x00480302, 1) + long(0x00480303, 1),
            sequence(0x52009229, sequence(0x00289110, element(0x00280030, b"DS", spacing))),
            element(0x7FE00010, b"OB", pixels.tobytes()),
        ]
    )
