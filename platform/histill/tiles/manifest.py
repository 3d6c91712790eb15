"""The manifest: what a tile set holds and where, so that no folder has to be listed."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from unicodedata import normalize

import numpy as np
import pyarrow as pa
from pydantic import Field

from histill.config.common import Storage
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.control import exists
from histill.storage.records import Record, read_record
from histill.storage.uris import join
from histill.tiles.coded_column import CodedColumn, count_values, join_runs
from histill.tiles.labels import TileLabels, number_labels, number_multi_labels, split_labels
from histill.tiles.row_runs import RowRuns
from histill.tiles.schema import MANIFEST
from histill.tiles.tile_rows import TileRows

HEADER_NAME = "manifest.json"


class Header(Record):
    """What a reader must know of a tile set before reading its rows."""

    noun: ClassVar[str] = "a manifest"
    remedy: ClassVar[str] = "ingest the tiles again"

    version: Literal[3] = 3
    digest: str = Field(description="SHA-256 over the rows, content hashes included; it identifies the tile set")
    table: str = Field(description="SHA-256 of the file with the rows, which is quicker to check")
    tiles: int
    tile_px: int
    mpp: float
    labels: tuple[str, ...]
    splits: dict[str, int] = Field(description="number of tiles in each split")
    masks: int = Field(description="number of tiles with a mask")
    ingest: str = Field(description="digest of the configuration that cut the tiles")
    skipped: tuple[str, ...] = Field((), description="a sentence for each slide or image without a tile")
    notes: tuple[str, ...] = Field((), description="sentences on what else a user should know about the sources")
    shard_bytes: int | None = Field(None, description="total size of the shards, to detect lost ones")
    slides: str | None = Field(None, description="SHA-256 of the record of the slides; null for images")
    columns: tuple[str, ...] = Field((), description="columns of the index that the rows keep, such as center")
    cut: bool = Field(True, description="false: places of tiles alone, which are cut from their slides when predicted")
    icc: Literal["srgb"] | None = Field(None, description="srgb: converted to it by the slides' color profiles")


@dataclass(frozen=True, eq=False)
class Manifest:
    """A tile set's header and rows; row i is tile i."""

    uri: str
    header: Header
    rows: TileRows

    def read(self, names: Sequence[str], rows: np.ndarray) -> pa.Table:
        """Some columns of some rows (int64), in the types of the manifest."""
        return self.rows.read(names, rows)

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """One column of some rows (int64)."""
        values: np.ndarray = self.rows.read([name], rows)[name].to_numpy(zero_copy_only=False)
        return values

    def tile(self, row: int) -> dict[str, Any]:
        """All that the manifest says of one tile."""
        names = [*MANIFEST.names, *self.rows.kept]
        found: dict[str, Any] = self.rows.read(names, np.array([row])).to_pylist()[0]
        return found

    def count(self, *names: str) -> list[tuple[tuple[Any, ...], int]]:
        """Each combination of the values of these columns, in the order of first appearance, and its number of tiles.

        For slide, case, mpp, size_px, label, has_mask, split, shard and row_group, and what is kept of the index.
        """
        return count_values(self.rows.coded[name] for name in names)

    def shards(self, split: str | None = None) -> list[str]:
        """The names of all shards, or of those with a tile of `split`."""
        return list(dict.fromkeys(shard for (shard, of), _ in self.count("shard", "split") if split in (None, of)))

    def select(self, split: str, cases: frozenset[str] | None = None) -> RowRuns:
        """The tiles of `split`, or of some of its `cases`. Raises InputError when there are none."""
        columns = [self.rows.coded[name] for name in ("split", "case")]
        ends, codes = join_runs(columns[: 1 if cases is None else 2])
        wanted = ({split}, cases or ())
        chosen = np.ones(len(ends), bool)
        for column, code, among in zip(columns, codes, wanted, strict=False):
            chosen &= np.array([value in among for value in column.values.to_pylist()], bool)[code]
        rows = RowRuns.between(np.concatenate([[0], ends[:-1]])[chosen], ends[chosen])
        if not len(rows):
            counts = ", ".join(f"{name} {count}" for name, count in self.header.splits.items())
            raise InputError(
                f"split {split!r} of {self.uri} is empty (it has {counts}); name another or cut other splits.",
                code="split-empty",
            )
        return rows

    def rows_of(self, split: str, cases: frozenset[str] | None = None) -> np.ndarray:
        """`select` as indices (int64, ascending), eight bytes for each tile."""
        return np.asarray(self.select(split, cases))

    def labels_of(self, outputs: OutputSpec, tiles: RowRuns | np.ndarray, *, needed: bool = True) -> TileLabels:
        """Each tile's label as a classifier with these `outputs` learns it: `labels_among` or `multi_labels_among`."""
        among = self.multi_labels_among if outputs.multi_label else self.labels_among
        return among(outputs.classes, tiles, needed=needed)

    def labels_among(self, classes: Sequence[str], tiles: RowRuns | np.ndarray, *, needed: bool = True) -> TileLabels:
        """The index in `classes` of every tile's label; -1 for a tile without one.

        Raises InputError, naming the first of `tiles` that has no label, if one is `needed`, or one not in `classes`.
        """
        return self._labels(number_labels, classes, tiles, needed)

    def multi_labels_among(
        self, classes: Sequence[str], tiles: RowRuns | np.ndarray, *, needed: bool = True
    ) -> TileLabels:
        """Which of `classes` each tile has, 0 or 1 for each; -1 in the row of a tile without a label.

        A tile's labels are stored as one string, separated by |. Raises InputError as `labels_among` does.
        """
        return self._labels(number_multi_labels, classes, tiles, needed)

    def _labels(
        self,
        number: Callable[[Sequence[str | None], Sequence[str]], tuple[np.ndarray, np.ndarray]],
        classes: Sequence[str],
        tiles: RowRuns | np.ndarray,
        needed: bool,
    ) -> TileLabels:
        column = self.rows.coded["label"]
        names = column.values.to_pylist()
        numbers, wrong = number(names, classes)
        wrong &= np.array([needed or name is not None for name in names], bool)
        found = _find_rows(column, wrong, tiles)
        if len(found):
            raise self._wrong_label(found, classes)
        return TileLabels(column, numbers)

    def _wrong_label(self, wrong: np.ndarray, classes: Sequence[str]) -> InputError:
        tile = self.tile(int(wrong[0]))
        said = "no label" if tile["label"] is None else f"the label {tile['label']!r}"
        return InputError(
            f"tile {tile['tile_id']} of {self.uri} has {said} (such tiles: {len(wrong)}); expected one of "
            f"{', '.join(classes)}: correct the index and ingest again, or name the classes.",
            code="label-missing" if tile["label"] is None else "label-unknown",
        )

    def label_names(self, *, multi_label: bool) -> tuple[str, ...]:
        """The labels of the set, ascending; with `multi_label`, combined labels are split into their parts."""
        if not multi_label:
            return self.header.labels
        return tuple(sorted({part for label in self.header.labels for part in split_labels(label)}))

    def without_mask(self, tiles: RowRuns | np.ndarray) -> np.ndarray:
        """Those of `tiles` that have no mask, int64."""
        column = self.rows.coded["has_mask"]
        return _find_rows(column, ~column.values.to_numpy(zero_copy_only=False), tiles)

    def counts_of(self, split: str) -> tuple[int, int, int]:
        """The numbers of tiles, cases and masks in `split`, all 0 when it is empty."""
        found = [
            (case, mask, count) for (of, case, mask), count in self.count("split", "case", "has_mask") if of == split
        ]
        tiles, masks = (sum(count for _, mask, count in found if mask or every) for every in (True, False))
        return tiles, len({case for case, _, _ in found}), masks


def _find_rows(column: CodedColumn, wanted: np.ndarray, tiles: RowRuns | np.ndarray) -> np.ndarray:
    """Those of `tiles` whose value in `column` is `wanted` (bool [values]), int64."""
    if not wanted.any():
        return np.zeros(0, np.int64)
    pieces = tiles.pieces() if isinstance(tiles, RowRuns) else [tiles]
    return np.concatenate([piece[wanted[column.codes_at(piece)]] for piece in pieces])


def case_digests(manifest: Manifest, split: str, cases: frozenset[str] | None = None) -> tuple[str, ...]:
    """The digests (`digest_case`) of the cases of a split, or of those that are in `cases`; ascending."""
    manifest.select(split, cases)  # refuses an empty split
    names = {
        case for (of, case), _ in manifest.count("split", "case") if of == split and (cases is None or case in cases)
    }
    return tuple(sorted({digest_case(name) for name in names}))


def digest_case(name: str) -> str:
    """12 digits of the SHA-256 of a case's name, equal for its composed and decomposed Unicode forms."""
    return hashlib.sha256(normalize("NFC", name).encode()).hexdigest()[:12]


def read_header(uri: str, storage: Storage, *, cut: bool = True) -> Header:
    """The header of the tile set at `uri`. Raises InputError when there is none, or if it is to be `cut` and is not."""
    try:
        header = read_record(Header, join(uri, HEADER_NAME), storage)
    except FileNotFoundError:
        index = join(uri, "index.csv")
        call = "histill ingest"
        if exists(index, storage):  # a folder of images: only their resolution is unknown
            call += f" output=<folder> images.index={index} images.mpp=<um/px> tile_px=<side>, and name that folder"
        raise InputError(
            f"{uri} holds no tile set ({HEADER_NAME} is missing); make one with {call}.", code="tiles-missing"
        ) from None
    if cut and not header.cut:
        raise InputError(
            f"{uri} holds the places of tiles that were predicted right from their slides, and not the tiles; predict "
            "the slides with keep_tiles=true, or ingest them.",
            code="tiles-missing",
        )
    return header
