"""A teacher's input size for a tile or window."""

from histill.errors import InputError


def teacher_input_px(side_px: int, tile_px: int, size_px: int, teacher: str) -> int:
    """The input size for a tile or window of `side_px`, of a teacher that sees tiles of `tile_px` at `size_px`.

    Raises InputError, naming `teacher`, when it is not a whole number of pixels.
    """
    if side_px * size_px % tile_px:
        raise InputError(
            f"teacher {teacher} sees tiles of {tile_px} px at {size_px} px, and a tile or window of {side_px} px would "
            f"have {side_px * size_px / tile_px:.2f} px there; choose a side that gives a whole number.",
            code="size-does-not-fit",
        )
    return side_px * size_px // tile_px
