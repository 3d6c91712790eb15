"""Masks as PNGs of class indices; the meaning of their values is determined once, for all masks of a set.

Two conventions are in use: in masks of 0 and 255, 255 is a foreground; in masks of class indices, 255 marks unlabeled
pixels (void, ignore). A single mask cannot tell which: a tile without any class but with a void border holds 0 and 255
as well. So all masks are read first. In stored masks, IGNORED marks the pixels that count nowhere.
"""

import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import field_serializer

from histill.errors import InputError
from histill.storage.records import Record
from histill.tiles.pixels import PictureError, bits_per_channel, check_png, open_picture, turn_upright
from histill.tiles.sources import Unreadable, unreadable_as

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

IGNORED = 255
"""Class of the pixels that are ignored in every loss and figure."""

_KEPT_EXACTLY = ("PNG", "TIFF", "BMP", "GIF")
_EXACT_TIFF = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000}  # lossless compressions
_COMPRESSION, _PHOTOMETRIC, _WHITE_IS_ZERO = 259, 262, 0
_HIGHEST_CLASS = 200  # next to an ignored 255; higher values are more likely shades than classes
_SHADES_PER_CLASS = 8  # likewise, the ratio of the highest value to the number of values


class Values(Record):
    """The values of some masks, and the first mask that holds both 255 and other classes, or only one of the two."""

    noun: ClassVar[str] = "the survey of some masks"
    remedy: ClassVar[str] = "remove it, and it is made again"

    found: frozenset[int] = frozenset()
    both: str | None = None
    only_255: str | None = None
    only_classes: str | None = None

    @classmethod
    def of(cls, values: Iterable[int], name: str) -> "Values":
        """The values of one mask."""
        found = frozenset(values)
        classes, full = bool(found - {0, IGNORED}), IGNORED in found
        return cls(
            found=found,
            both=name if classes and full else None,
            only_255=name if full and not classes else None,
            only_classes=name if classes and not full else None,
        )

    def __or__(self, later: "Values") -> "Values":
        return Values(
            found=self.found | later.found,
            both=self.both or later.both,
            only_255=self.only_255 or later.only_255,
            only_classes=self.only_classes or later.only_classes,
        )

    @field_serializer("found")
    def _sort(self, found: frozenset[int]) -> list[int]:
        return sorted(found)


def find_meaning(values: Values, index: str) -> dict[int, int]:
    """The class of each value that the masks of `index` may hold.

    Without 255, values are classes. With only 0 and 255, 255 is class 1. If any mask holds both 255 and other classes,
    255 is IGNORED in all masks. Raises InputError, with the key that decides it, when no mask holds both, or when the
    classes look like the shades of masks that were resized or compressed.
    """
    classes = sorted(values.found - {0, IGNORED})
    if IGNORED not in values.found:
        return {value: value for value in range(IGNORED)}
    if not classes:
        return {0: 0, IGNORED: 1}
    shades = classes[-1] > _HIGHEST_CLASS or classes[-1] > _SHADES_PER_CLASS * len(classes)
    if values.both and not shades:
        return {value: value for value in range(IGNORED + 1)}
    key = f"images.mask_values={{0: 0, {', '.join(f'{value}: {value}' for value in classes[:3])}"
    key += ", ..." if len(classes) > 3 else ""
    if shades:
        raise InputError(
            f"the masks of {index} hold 255 and values up to {classes[-1]} ({len(classes)} of them, first: "
            f"{values.both or values.only_classes}), as in masks that were resized or compressed; export them again, "
            f"or give each value its class with {key}, 255: 255}}, where a class of 255 is ignored.",
            code="mask-values",
        )
    raise InputError(
        f"the masks of {index} hold 255 (first: {values.only_255}) and other classes (first: {values.only_classes}), "
        "and none of them both, so that 255 may be a foreground or pixels to ignore; give each value its class with "
        f"{key}, 255: 255}} to ignore it, or 255: 1 for a foreground.",
        code="mask-values",
    )


def mask_values(data: bytes, name: str) -> Values:
    """The values of one mask. Raises Unreadable as `normalize_mask` does."""
    with unreadable_as(f"the mask {name}"):
        return Values.of(_distinct(_read_classes(data)[0]), name)


def normalize_mask(data: bytes, name: str, image: str, tile_px: int, meaning: Mapping[int, int] | None = None) -> bytes:
    """Convert a mask to an upright PNG of class indices, uint8, with IGNORED for the pixels to ignore.

    `meaning` is the class of each value, as `find_meaning` returns it for a whole set; None: for this mask alone.

    Raises Unreadable when the mask is damaged, does not have the size of its image, holds a value without a meaning, or
    does not hold one class index per pixel: colors, fractions, values above 255 (unless `meaning` has them), lossy
    compression, a gray palette in another order, or content that only its transparency shows.
    """
    from PIL import Image

    with unreadable_as(f"the mask {name}"):
        values, size = _read_classes(data)
    if size != (tile_px, tile_px):
        raise Unreadable(
            f"the mask {name} is {size[0]} x {size[1]} px and its image {image} is {tile_px} x {tile_px}; "
            "make them the same size.",
            code="image-unreadable",
        )
    if meaning is None:
        meaning = find_meaning(Values.of(_distinct(values), name), name)
    table = np.full(max(meaning) + 2, -1, np.int64)
    table[list(meaning)] = list(meaning.values())
    classes = table[np.minimum(values, max(meaning) + 1)]
    if classes.min() < 0:
        wrong = int(values[classes < 0].max())
        said = "colors or values above 255" if wrong > IGNORED else f"the value {wrong}"
        raise Unreadable(
            f"the mask {name} holds {said} ({wrong}), and {_spans(meaning)} was expected; give a PNG of class indices "
            "from 0 to 255 (not instance numbers), or set images.mask_values.",
            code="mask-values",
        )
    encoded = io.BytesIO()
    with Image.fromarray(classes.astype(np.uint8)) as plain:
        plain.save(encoded, "PNG")
    return encoded.getvalue()


def class_pixels(mask: bytes) -> dict[int, int]:
    """The number of pixels of each class in a mask made by `normalize_mask`."""
    from PIL import Image

    counts = np.bincount(np.asarray(Image.open(io.BytesIO(mask))).ravel())
    return {int(each): int(counts[each]) for each in np.flatnonzero(counts)}


def _distinct(values: np.ndarray) -> list[int]:
    """The distinct values, ascending; for small ones counting is ten times as fast as sorting."""
    if values.max() < 2**16:
        return np.flatnonzero(np.bincount(values.ravel())).tolist()
    return np.unique(values).tolist()


def _spans(meaning: Mapping[int, int]) -> str:
    values = sorted(meaning)
    return f"0 to {values[-1]}" if len(values) == values[-1] + 1 else f"one of {', '.join(map(str, values))}"


def _read_classes(data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    """The value of each pixel, int64 [H, W], upright and not negative, and the size (width, height)."""
    picture = open_picture(data)
    bits = bits_per_channel(picture, data)
    if picture.format not in _KEPT_EXACTLY or not _is_exact(picture):
        raise PictureError("is compressed in a way that may change its values; give a PNG of class indices")
    if picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
        raise PictureError("is a TIFF whose 0 is white; save it as a PNG of class indices")
    if bits in (2, 4) and picture.mode == "L":  # decoders scale them to 0..255; the writer may have meant indices
        raise PictureError(
            f"is gray with {bits} bits a pixel, where indices and shades look alike; save it with 8 bits"
        )
    if bits > 8 and picture.mode not in ("I", "I;16", "I;16B", "I;16L"):
        raise PictureError("holds colors or values above 255; give a PNG of class indices from 0 to 255")
    check_png(picture, data)
    shown = turn_upright(picture)
    if shown.mode == "P":
        _check_palette(shown)
    values = _gray(shown)
    if values.min() < 0:
        raise PictureError(f"holds values below 0 ({values.min()}); give a PNG of class indices from 0 to 255")
    return values, shown.size


def _is_exact(picture: "ImageFile") -> bool:
    return picture.format != "TIFF" or picture.tag_v2.get(_COMPRESSION, 1) in _EXACT_TIFF  # type: ignore[attr-defined]


def _gray(shown: "Image") -> np.ndarray:
    """The single value of each pixel, int64 [H, W]. Raises PictureError for colors, or content in the transparency."""
    if shown.mode == "1":
        return np.asarray(shown).astype(np.int64) * 255
    if shown.mode not in ("L", "P", "LA", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L"):
        raise PictureError(f"has the color mode {shown.mode}; give a PNG of class indices from 0 to 255")
    layers = np.asarray(shown).astype(np.int64)
    if shown.mode in ("LA", "RGBA"):
        alpha, layers = layers[..., -1], layers[..., :-1]
    elif shown.has_transparency_data and shown.mode in ("L", "P", "RGB"):
        alpha = np.asarray(shown.convert("RGBA"))[..., -1]
    else:
        alpha = None
    if layers.ndim == 3:
        if (layers != layers[..., :1]).any():
            raise PictureError("holds colors or values above 255; give a PNG of class indices from 0 to 255")
        layers = layers[..., 0]
    if alpha is not None and alpha.min() < 255 and ((alpha < 255) != (layers == 0)).any():
        raise PictureError("shows by transparency what its values do not; give a PNG of class indices without it")
    if shown.mode in ("LA", "RGBA") and alpha is not None and alpha.min() == 255 and not layers.any():
        raise PictureError(
            "is 0 and opaque throughout, which is empty, or full where alpha marks; save it without alpha"
        )
    return layers


def _check_palette(shown: "Image") -> None:
    """Raise PictureError unless the palette shows the indices in order, or in colors, which have no order."""
    palette = np.array(shown.getpalette("RGB"), np.int64).reshape(-1, 3)
    used = np.unique(np.asarray(shown))
    used = used[used < len(palette)]
    said = "has a palette that shows its indices in another order (0 is {}); save it as gray, with class indices"
    said = said.format("white" if (palette[0] == 255).all() else f"color {tuple(palette[0].tolist())}")
    if (palette == palette[:, :1]).all():
        grays = palette[:, 0]
        if grays[0] > grays.min() or (np.diff(grays[used]) <= 0).any():
            raise PictureError(said)
    elif palette[0].any() and (palette[used[used > 0]] == 0).all(1).any():
        raise PictureError(said)
