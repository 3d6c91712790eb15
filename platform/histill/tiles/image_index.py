"""Read an index of images: image, case and label of each row; report duplicates and unused columns."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from histill.config.common import Storage
from histill.config.ingest_tiles import Columns, ImageSource
from histill.errors import InputError
from histill.storage.uris import beside, is_remote, without_dots
from histill.tiles.index import Index, lines_named, plain, read_index
from histill.tiles.kept_columns import keep_values

# Other common names of the columns with labels and masks.
LIKE_LABEL = ("label", "labels", "class", "classes", "category", "target", "diagnosis", "subtype", "y")
LIKE_MASK = ("mask", "masks", "segmentation", "annotation")


@dataclass(frozen=True)
class ImageRow:
    """One image of an index; `name` is its path as written in the index, on `line`."""

    name: str
    uri: str
    case: str
    label: str | None
    mask: str | None
    line: int
    kept: tuple[str | None, ...] = ()  # its values in the columns that the tile set keeps


@dataclass(frozen=True)
class ImageIndex:
    """The images, and a note for everything in the index that is not used or looks wrong."""

    rows: list[ImageRow]
    notes: tuple[str, ...]


def image_rows(source: ImageSource, storage: Storage) -> list[ImageRow]:
    """The rows of `read_image_index`."""
    return read_image_index(source, storage).rows


def read_image_index(source: ImageSource, storage: Storage, keep: Sequence[str] = ()) -> ImageIndex:
    """Read the index that `source` names, with the further columns to `keep`. Values are normalized to Unicode NFC.

    Raises InputError, with the lines, for a missing column, a file that is named twice (also by another path, such as
    `a.png` and `./a.png`, or a link), an image that is its own mask, and labels that differ only in case or spaces.
    """
    columns = source.columns
    index = read_index(source.index, storage, needed=[columns.image, columns.case])
    for key in ("label", "mask"):
        column = getattr(columns, key)
        if column is not None and key in columns.model_fields_set and column not in index.columns:
            raise InputError(
                f"the index {source.index} has no column {column!r}; it has {', '.join(filter(None, index.columns))}: "
                f"name one of these (images.columns.{key}), or leave the key out.",
                code="index-column-missing",
            )
    kept = keep_values(index, keep, (columns.image, columns.case, columns.label, columns.mask))
    rows = [_row(source, *each) for each in zip(index.rows, index.lines, kept, strict=True)]
    if source.mask_values is not None and not any(row.mask for row in rows):
        raise InputError(
            f"images.mask_values gives the values of masks their classes, and the index {source.index} names no mask; "
            "name its column (images.columns.mask), or leave it out.",
            code="index-column-missing",
        )
    files = _Files()
    _check_doubled(source.index, rows, files)
    _check_labels(source.index, rows)
    return ImageIndex(rows, (*index.notes, *_notes(columns, index, rows, files, keep)))


def _row(source: ImageSource, values: dict[str, str], line: int, kept: tuple[str | None, ...]) -> ImageRow:
    columns = source.columns
    name = values[columns.image]
    mask = values.get(columns.mask, "") if columns.mask else ""
    label = values.get(columns.label, "") if columns.label else ""
    return ImageRow(
        name=name,
        uri=without_dots(beside(source.index, name)),
        case=plain(values[columns.case]),
        label="|".join(filter(None, map(plain, label.split("|")))) or None,
        mask=without_dots(beside(source.index, mask)) if mask else None,
        line=line,
        kept=kept,
    )


class _Files:
    """Resolves all names of a file to one. Folders are resolved once, since they may hold millions of files."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, uri: str) -> str:
        if is_remote(uri):
            return plain(uri)
        folder, _, name = uri.rpartition("/")
        if name in ("", ".", "..") or os.path.islink(uri):
            return plain(os.path.realpath(uri))
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder or ("/" if uri.startswith("/") else "."))
        return plain(os.path.join(self._folders[folder], name))


def _check_doubled(uri: str, rows: Sequence[ImageRow], files: _Files) -> None:
    seen: dict[str, ImageRow] = {}
    for row in rows:
        file = files.of(row.uri)
        earlier = seen.setdefault(file, row)
        if earlier is not row:
            other = "" if earlier.name == row.name else f" (as {earlier.name})"
            raise InputError(
                f"the index {uri} names the image {row.name} twice{other}, on lines {earlier.line} and {row.line}; "
                "remove one of the rows.",
                code="index-duplicate",
            )
        if row.mask is not None and files.of(row.mask) == file:
            raise InputError(
                f"line {row.line} of the index {uri} names {row.name} as an image and as its mask; name the "
                "mask, or leave it empty.",
                code="index-wrong-value",
            )


def _check_labels(uri: str, rows: Sequence[ImageRow]) -> None:
    written: dict[str, tuple[str, int]] = {}
    for row in rows:
        for part in (row.label or "").split("|"):
            earlier, first = written.setdefault(_alike(part), (part, row.line))
            if earlier != part:
                raise InputError(
                    f"the index {uri} writes one label in two ways, {earlier!r} on line {first} and {part!r} on line "
                    f"{row.line}; write them alike.",
                    code="index-wrong-value",
                )


@lru_cache(4096)
def _alike(name: str) -> str:
    """A key that is equal for names that look alike or differ only in case or spaces."""
    seen = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    return " ".join(seen.casefold().split())


def _notes(columns: Columns, index: Index, rows: Sequence[ImageRow], files: _Files, keep: Sequence[str]) -> list[str]:
    notes = _unused_notes(columns, index, keep)
    for what, column, values in (
        ("label", columns.label, [row.label for row in rows]),
        ("mask", columns.mask, [row.mask for row in rows]),
    ):
        without = [row.line for row, value in zip(rows, values, strict=True) if value is None]
        if column in index.columns and without:
            notes.append(f"{len(without)} of {len(rows)} images have no {what} ({lines_named(without)}).")
    masks: dict[str, list[int]] = {}
    cases: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.mask is not None:
            masks.setdefault(files.of(row.mask), []).append(row.line)
        cases.setdefault(_alike(row.case), {}).setdefault(row.case, row.line)
    notes += [f"the mask {mask} is that of {len(those)} images ({lines_named(those)})."
              for mask, those in masks.items() if len(those) > 1]  # fmt: skip
    notes += [
        f"the cases {' and '.join(map(repr, names))} ({lines_named(list(names.values()))}) differ only in case or "
        "spaces and count as different ones."
        for names in cases.values()
        if len(names) > 1
    ]
    return notes


def _unused_notes(columns: Columns, index: Index, keep: Sequence[str]) -> list[str]:
    unused = index.unused((columns.image, columns.case, columns.label, columns.mask, *keep))
    notes, named = [], set()
    for key, column, names in (("label", columns.label, LIKE_LABEL), ("mask", columns.mask, LIKE_MASK)):
        likely = _first_like(unused, names)
        if column is not None and column not in index.columns and likely:
            named.add(likely)
            notes.append(f"no image has a {key}: the index has no column {column!r}; images.columns.{key}={likely} "
                         f"takes it from {likely!r}.")  # fmt: skip
    others = [column for column in unused if column not in named]
    return ([f"columns of the index that are not used: {', '.join(others)}."] if others else []) + notes


def _first_like(columns: Iterable[str], names: Sequence[str]) -> str | None:
    found = [column for column in columns if column.casefold() in names]
    return min(found, key=lambda column: names.index(column.casefold()), default=None)
