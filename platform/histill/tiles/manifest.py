"""The manifest: what a tile set holds and where, so that no folder has to be listed."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import Field

from histill.config.common import Storage
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.storage.control import exists, read_bytes, write_bytes
from histill.storage.records import Record, read_record, write_record
from histill.storage.uris import join
from histill.tiles.schema import MANIFEST
from histill.tiles.slide_records import SlideRecord, write_slides

TABLE_NAME = "manifest.parquet"
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


@dataclass(frozen=True)
class Manifest:
    """A tile set's header and rows; row i of `table` is tile i."""

    uri: str
    header: Header
    table: pa.Table

    def shards(self, split: str | None = None) -> list[str]:
        """The names of all shards, or of those with a tile of `split`."""
        table = self.table if split is None else self.table.filter(pc.equal(self.table["split"], split))
        names: list[str] = table["shard"].unique().to_pylist()
        return names

    def rows_of(self, split: str, cases: frozenset[str] | None = None) -> np.ndarray:
        """Indices (int64, ascending) of the tiles of `split`, or of some of its `cases`.

        Raises InputError when there are none.
        """
        chosen = pc.equal(self.table["split"], split)
        if cases is not None:
            chosen = pc.and_(chosen, pc.is_in(self.table["case"], pa.array(sorted(cases))))
        rows = np.flatnonzero(chosen.to_numpy())
        if not len(rows):
            counts = ", ".join(f"{name} {count}" for name, count in self.header.splits.items())
            raise InputError(
                f"split {split!r} of {self.uri} is empty (it has {counts}); name another or cut other splits.",
                code="split-empty",
            )
        return rows

    def labels_of(self, outputs: OutputSpec, tiles: np.ndarray, *, needed: bool = True) -> np.ndarray:
        """Each tile's label as a classifier with these `outputs` learns it: `labels_among` or `multi_labels_among`."""
        among = self.multi_labels_among if outputs.multi_label else self.labels_among
        return among(outputs.classes, tiles, needed=needed)

    def labels_among(self, classes: Sequence[str], tiles: np.ndarray, *, needed: bool = True) -> np.ndarray:
        """The index in `classes` of every tile's label, int64 [all tiles]; -1 for a tile without one.

        Raises InputError, naming the first of `tiles` that has no label, if one is `needed`, or one not in `classes`.
        """
        indices = pc.fill_null(pc.index_in(self.table["label"], pa.array(classes)), -1).to_numpy().astype(np.int64)
        wrong = tiles[indices[tiles] < 0]
        if not needed:
            wrong = wrong[pc.is_valid(self.table["label"].take(pa.array(wrong))).to_numpy()]
        if len(wrong):
            raise self._wrong_label(wrong, classes)
        return indices

    def _wrong_label(self, wrong: np.ndarray, classes: Sequence[str]) -> InputError:
        row = self.table.slice(int(wrong[0]), 1).to_pylist()[0]
        said = "no label" if row["label"] is None else f"the label {row['label']!r}"
        return InputError(
            f"tile {row['tile_id']} of {self.uri} has {said} (such tiles: {len(wrong)}); expected one of "
            f"{', '.join(classes)}: correct the index and ingest again, or name the classes.",
            code="label-missing" if row["label"] is None else "label-unknown",
        )

    def label_names(self, *, multi_label: bool) -> tuple[str, ...]:
        """The labels of the set, ascending; with `multi_label`, combined labels are split into their parts."""
        if not multi_label:
            return self.header.labels
        return tuple(sorted({part for label in self.header.labels for part in _parts(label)}))

    def multi_labels_among(self, classes: Sequence[str], tiles: np.ndarray, *, needed: bool = True) -> np.ndarray:
        """Which of `classes` each tile has, int64 [all tiles, K] of 0 and 1; -1 in the row of a tile without a label.

        A tile's labels are stored as one string, separated by |. Raises InputError as `labels_among` does.
        """
        labels = self.header.labels
        rows = np.full((len(labels) + 1, len(classes)), -1, np.int64)  # last row: tiles without a label
        unknown = np.array([*(not set(_parts(label)) <= set(classes) for label in labels), needed])
        for number, label in enumerate(labels):
            rows[number] = [name in _parts(label) for name in classes]
        found = pc.index_in(self.table["label"], pa.array(labels, pa.string()))
        index = pc.fill_null(found, len(labels)).to_numpy().astype(np.int64)
        wrong = tiles[unknown[index[tiles]]]
        if len(wrong):
            raise self._wrong_label(wrong, classes)
        return rows[index]

    def counts_of(self, split: str) -> tuple[int, int, int]:
        """The numbers of tiles, cases and masks in `split`, all 0 when it is empty."""
        rows = self.table.filter(pc.equal(self.table["split"], split))
        return rows.num_rows, pc.count_distinct(rows["case"]).as_py(), pc.sum(rows["has_mask"]).as_py() or 0


def case_digests(manifest: Manifest, split: str, cases: frozenset[str] | None = None) -> tuple[str, ...]:
    """The digests (`digest_case`) of the cases of a split, or of those that are in `cases`; ascending."""
    names = manifest.table["case"].take(pa.array(manifest.rows_of(split, cases))).unique().to_pylist()
    return tuple(sorted({digest_case(name) for name in names}))


def digest_case(name: str) -> str:
    """12 digits of the SHA-256 of a case's name, equal for its composed and decomposed Unicode forms."""
    return hashlib.sha256(normalize("NFC", name).encode()).hexdigest()[:12]


def _parts(label: str) -> list[str]:
    """Split a combined label at |."""
    return [part.strip() for part in label.split("|") if part.strip()]


def digest_table(table: pa.Table) -> str:
    """SHA-256 of the rows as CSV, which does not depend on the chunks and buffers of the table."""
    text = io.BytesIO()
    pyarrow.csv.write_csv(table.select(MANIFEST.names), text)
    return hashlib.sha256(text.getvalue()).hexdigest()


def write_rows(
    uri: str,
    table: pa.Table,
    *,
    tile_px: int,
    mpp: float,
    ingest: str,
    storage: Storage,
    skipped: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    slides: Sequence[SlideRecord] = (),
) -> Manifest:
    """Write the rows and the record of the slides; the set is finished once its header is written, too."""
    table = table.select(MANIFEST.names).cast(MANIFEST).combine_chunks()
    splits = table["split"].value_counts().to_pylist()
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    header = Header(
        digest=digest_table(table),
        table=hashlib.sha256(buffer.getvalue()).hexdigest(),
        tiles=table.num_rows,
        tile_px=tile_px,
        mpp=mpp,
        labels=tuple(sorted(label for label in table["label"].unique().to_pylist() if label is not None)),
        splits={pair["values"]: pair["counts"] for pair in sorted(splits, key=lambda pair: pair["values"])},
        masks=int(np.count_nonzero(table["has_mask"].to_numpy(zero_copy_only=False))),
        ingest=ingest,
        skipped=skipped,
        notes=notes,
        slides=write_slides(uri, slides, storage) if slides else None,
    )
    write_bytes(join(uri, TABLE_NAME), buffer.getvalue(), storage)
    return Manifest(uri, header, table)


def write_manifest(uri: str, table: pa.Table, *, storage: Storage, **values: Any) -> Manifest:
    """Write the rows and then the header, for shards that exist already; `values` are passed to `write_rows`."""
    manifest = write_rows(uri, table, storage=storage, **values)
    write_record(manifest.header, join(uri, HEADER_NAME), storage)
    return manifest


def read_header(uri: str, storage: Storage) -> Header:
    """The header of the tile set at `uri`. Raises InputError when there is none."""
    try:
        return read_record(Header, join(uri, HEADER_NAME), storage)
    except FileNotFoundError:
        index = join(uri, "index.csv")
        call = "jobs/ingest_tiles.py"
        if exists(index, storage):  # a folder of images: only their resolution is unknown
            call += f" output=<folder> images.index={index} images.mpp=<um/px> tile_px=<side>, and name that folder"
        raise InputError(
            f"{uri} holds no tile set ({HEADER_NAME} is missing); make one with {call}.", code="tiles-missing"
        ) from None


def read_manifest(uri: str, storage: Storage) -> Manifest:
    """Read header and rows, verified against the digest.

    Raises InputError when one is missing or they do not belong together.
    """
    header = read_header(uri, storage)
    try:
        data = read_bytes(join(uri, TABLE_NAME), storage)
    except FileNotFoundError:
        raise InputError(f"{join(uri, TABLE_NAME)} is missing; ingest the tiles again.", code="tiles-damaged") from None
    if hashlib.sha256(data).hexdigest() != header.table:
        raise InputError(
            f"{join(uri, TABLE_NAME)} does not match its header's digest: it was cut short or overwritten; ingest the "
            "tiles again.",
            code="tiles-damaged",
        )
    return Manifest(uri, header, pq.read_table(pa.BufferReader(data)))
