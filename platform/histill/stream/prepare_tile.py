"""Convert a stored tile to the pixels that a network sees; needs only numpy, OpenCV and simplejpeg.

histill itself decodes by these rules, and this file is shipped with every exported model, so that a program that runs
the model can feed it exactly the same pixels:

    pixels = prepare_tile(open("tile.jpg", "rb").read(), tile_px=512, size_px=224)  # uint8 [224, 224, 3], RGB
    batch = pixels.transpose(2, 0, 1)[None].astype("float32")                       # float32 [1, 3, 224, 224]

The steps are as follows; `list_steps(512, 224)` lists them for given sides.
1. A JPEG is decoded by libjpeg-turbo at 1, 1/2, 1/4 or 1/8 of its side: the smallest that is a whole number of pixels
   and at least the side that the network sees. Scaling happens in the DCT domain (scale_num=1, scale_denom=2, 4 or 8),
   with the accurate integer transform (JDCT_ISLOW) and smooth upsampling of chroma (do_fancy_upsampling). A PNG is
   decoded at full size.
2. As long as half the side is at least what the network sees: the mean of each 2 x 2 pixels, rounded half up.
3. For the remaining factor below 2: area averaging, cv2.INTER_AREA.
A single area average in place of these steps gives other values, at some pixels by tens of levels.
"""

from functools import cache

import numpy as np


def prepare_tile(tile: bytes | np.ndarray, tile_px: int, size_px: int) -> np.ndarray:
    """Convert a tile to the input of a network that sees it at `size_px`: RGB, uint8 [size_px, size_px, 3].

    Args:
        tile: the bytes of a JPEG or PNG of 8 bits per channel, or pixels, RGB, uint8 [tile_px, tile_px, 3], which are
            treated like those of a PNG. A PNG's orientation tag is applied, a JPEG's is not: tile sets hold none.
        tile_px: side of the tile.
        size_px: side at which the network sees it, `tile_px` or less.

    Raises ValueError when the tile is not such an image.
    """
    import simplejpeg

    if not 0 < size_px <= tile_px:
        raise ValueError(f"the network sees {size_px} px, which must lie between 1 and the tile's {tile_px} px")
    if isinstance(tile, np.ndarray):
        pixels, expected = np.ascontiguousarray(tile), tile_px
    elif simplejpeg.is_jpeg(tile):
        height, width, *_ = simplejpeg.decode_jpeg_header(tile, strict=True)
        _check_shape((height, width, 3), tile_px)
        expected = tile_px // reduction_for(tile_px, size_px)
        pixels = simplejpeg.decode_jpeg(tile, colorspace="RGB", strict=True, min_height=expected, min_width=expected)
    else:
        pixels, expected = _decode_png(tile), tile_px
    _check_shape(pixels.shape, expected)
    if pixels.dtype != np.uint8:
        raise ValueError(f"the pixels are {pixels.dtype} and uint8 was expected")
    return downscale_area(pixels, size_px)


@cache
def reduction_for(size_px: int, needed_px: int) -> int:
    """The largest of 8, 4, 2 and 1 that divides `size_px` and leaves at least `needed_px`."""
    return next(by for by in (8, 4, 2, 1) if size_px % by == 0 and size_px // by >= needed_px)


def downscale_area(image: np.ndarray, side: int, into: np.ndarray | None = None) -> np.ndarray:
    """Downscale `image` (uint8 [H, H, 3]) to [side, side, 3] by area averaging; return it as is if it has that side.

    The result is written to `into` (C-contiguous, of its shape) if that is given, unless `image` is returned.
    """
    import cv2

    # Halving has a vectorized path that costs a third of averaging over 4 x 4 pixels at once.
    while image.shape[0] % 2 == 0 and (half := image.shape[0] // 2) >= side:
        image = cv2.resize(image, (half, half), dst=into if half == side else None, interpolation=cv2.INTER_AREA)
    return image if image.shape[0] == side else cv2.resize(image, (side, side), dst=into, interpolation=cv2.INTER_AREA)


def list_steps(tile_px: int, size_px: int) -> list[str]:
    """Describe in words what `prepare_tile` does to a JPEG, and to a PNG, of `tile_px` that is seen at `size_px`."""
    reduction = reduction_for(tile_px, size_px)
    side = tile_px // reduction
    scale = "whole" if reduction == 1 else f"at 1/{reduction} in the DCT domain, to {side} px"
    return [
        f"JPEG: decode {scale}, JDCT_ISLOW, fancy upsampling{_list_shrinking(side, size_px)}",
        f"PNG: decode whole{_list_shrinking(tile_px, size_px)}",
    ]


def _decode_png(data: bytes) -> np.ndarray:
    import cv2

    encoded = np.frombuffer(data, np.uint8)
    stored, shown = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED), cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if stored is None or shown is None:
        raise ValueError("the tile is neither a JPEG nor a PNG, or it is damaged")
    if stored.dtype != np.uint8:
        raise ValueError(f"the tile has {8 * stored.itemsize} bits per channel; convert it to 8")
    if stored.ndim == 3 and stored.shape[2] == 4 and stored[..., 3].min() < 255:
        raise ValueError("the tile is transparent in part; lay it over white")
    return np.asarray(cv2.cvtColor(shown, cv2.COLOR_BGR2RGB))


def _list_shrinking(side: int, size_px: int) -> str:
    words = ""
    while side % 2 == 0 and side // 2 >= size_px:
        side //= 2
        words += f"; mean of 2 x 2 pixels, rounded half up, to {side} px"
    return words if side == size_px else f"{words}; mean over areas (cv2.INTER_AREA) to {size_px} px"


def _check_shape(shape: tuple[int, ...], side: int) -> None:
    if shape != (side, side, 3):
        raise ValueError(f"the tile is {' x '.join(map(str, shape))} and {side} x {side} x 3 was expected")
