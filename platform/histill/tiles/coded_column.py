"""A column of a manifest with few different values: a number for each, stored once for a run of rows that share it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

END, VALUE = "end", "value"
_RUN_BYTES, _CODE_BYTES = 12, 4


@dataclass(frozen=True, eq=False)
class CodedColumn:
    """The values of a column, in the order in which they first occur, and which of them each row has."""

    values: pa.Array  # may hold null
    codes: np.ndarray  # int32 [runs], or [rows] without `ends`: indices into `values`
    ends: np.ndarray | None  # int64 [runs]: the row after each run; None: rows that change too often for runs

    @classmethod
    def of(cls, table: pa.Table) -> "CodedColumn":
        """The column that `code_column` made, without a copy."""
        value = table[VALUE].chunk(0)
        ends = table[END].chunk(0).to_numpy() if END in table.column_names else None
        return cls(value.dictionary, value.indices.to_numpy(), ends)

    def codes_at(self, rows: np.ndarray) -> np.ndarray:
        """The indices, int32, of the values of `rows` (int64)."""
        found: np.ndarray = self.codes[rows if self.ends is None else np.searchsorted(self.ends, rows, side="right")]
        return found

    def take(self, rows: np.ndarray) -> pa.Array:
        """The values of `rows` (int64)."""
        return self.values.take(pa.array(self.codes_at(rows)))

    def runs(self) -> tuple[np.ndarray, np.ndarray]:
        """The row after each run of equal values, int64, and the index of its value, int32."""
        if self.ends is not None:
            return self.ends, self.codes
        last = np.append(np.flatnonzero(np.diff(self.codes)), len(self.codes) - 1)
        return last + 1, self.codes[last]


def code_column(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Code the only column of `batches`: a table of one chunk, `value` (a dictionary) and, if it has runs, `end`."""
    values: pa.Array | None = None
    ends: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    rows, by_run = 0, True
    for batch in batches:
        if not batch.num_rows:
            continue
        coded = batch.column(0).dictionary_encode(null_encoding="encode")
        values, code = _number(values, coded)
        last = np.append(np.flatnonzero(np.diff(code)), len(code) - 1)
        if by_run and _RUN_BYTES * len(last) > _CODE_BYTES * len(code):
            codes = [np.repeat(each, np.diff(end, prepend=start)) for start, each, end in _with_starts(codes, ends)]
            by_run = False
        if by_run and codes and codes[-1][-1] == code[0]:  # the run goes on in this batch
            codes[-1], ends[-1] = codes[-1][:-1], ends[-1][:-1]
            codes, ends = [each for each in codes if len(each)], [each for each in ends if len(each)]
        codes.append(code[last] if by_run else code)
        ends.append(last + rows + 1)
        rows += len(code)
    assert values is not None
    indices = pa.array(np.concatenate(codes).astype(np.int32))
    columns = {VALUE: pa.DictionaryArray.from_arrays(indices, values)}
    if by_run:
        columns[END] = pa.array(np.concatenate(ends).astype(np.int64))
    return pa.table(columns)


def _with_starts(codes: list[np.ndarray], ends: list[np.ndarray]) -> Iterable[tuple[int, np.ndarray, np.ndarray]]:
    starts = [0, *(int(each[-1]) for each in ends)]
    return zip(starts, codes, ends, strict=False)


def _number(values: pa.Array | None, coded: pa.DictionaryArray) -> tuple[pa.Array, np.ndarray]:
    """`values` and those of `coded` that are new, and the place of each row's value among them, int64."""
    found, indices = coded.dictionary, coded.indices.to_numpy()
    if values is None:
        return found, indices.astype(np.int64)
    place = pc.index_in(found, value_set=values)
    new = found.filter(place.is_null())
    places = pc.fill_null(place, 0).to_numpy().astype(np.int64)
    places[place.is_null().to_numpy(zero_copy_only=False)] = len(values) + np.arange(len(new))
    return pa.concat_arrays([values, new]) if len(new) else values, places[indices]


def join_ends(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The ends of runs that end in either (int64, ascending)."""
    both = np.sort(np.concatenate([one, other]), kind="stable")  # merges; a hash table would take ten times as long
    return both[np.append(np.diff(both) > 0, True)]


def join_runs(columns: Iterable[CodedColumn]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The row after each run in which no column changes, int64, and for each column the codes there, int32."""
    runs = [column.runs() for column in columns]
    ends: np.ndarray = reduce(join_ends, [ends for ends, _ in runs])
    return ends, [codes[np.searchsorted(column_ends, ends)] for column_ends, codes in runs]


def count_values(columns: Iterable[CodedColumn]) -> list[tuple[tuple[Any, ...], int]]:
    """Each combination of the values of `columns`, in the order of first appearance, and its number of rows."""
    columns = list(columns)
    ends, codes = join_runs(columns)
    pairs, first, inverse = np.unique(np.stack(codes, 1), axis=0, return_index=True, return_inverse=True)
    counts = np.bincount(inverse.ravel(), np.diff(ends, prepend=0)).astype(np.int64)
    values = [column.values.to_pylist() for column in columns]
    return [
        (tuple(each[code] for each, code in zip(values, pairs[place], strict=True)), int(counts[place]))
        for place in np.argsort(first)
    ]
