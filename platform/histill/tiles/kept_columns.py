"""Take the further columns of an index that a tile set keeps, such as center and scanner."""

from collections.abc import Iterable, Sequence

from histill.errors import InputError
from histill.tiles.index import Index, plain


def keep_values(index: Index, kept: Sequence[str], used: Iterable[str | None]) -> list[tuple[str | None, ...]]:
    """The values of each row in the columns that a tile set keeps, null where they are empty.

    Raises InputError for a column that the index lacks, or that is `used` and so has its own place in the tile set.
    """
    for name in kept:
        if name not in index.columns:
            raise InputError(
                f"the index {index.uri} has no column {name!r}; it has {', '.join(filter(None, index.columns))}: "
                "correct keep_columns.",
                code="index-column-missing",
            )
        if name in set(used):
            raise InputError(
                f"the tile set has the column {name!r} of the index {index.uri} anyway; leave it out of keep_columns.",
                code="config-conflict",
            )
    return [tuple(plain(row[name]) or None for name in kept) for row in index.rows]
