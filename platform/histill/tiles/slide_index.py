"""Which slides, or regions of slides, a source names."""

from dataclasses import dataclass

from histill.config.common import Storage
from histill.config.ingest import SlideSource
from histill.errors import InputError
from histill.storage.uris import beside, stem
from histill.tiles.index import plain, read_index
from histill.tiles.resolution import PLAUSIBLE_MPP

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class SlideRow:
    """A slide, or a region of one: `left`, `top`, `right`, `bottom` as fractions of width and height."""

    uri: str
    case: str
    mpp: float | None = None
    region: tuple[float, float, float, float] = WHOLE

    @property
    def name(self) -> str:
        """The slide's name in tile ids and in the manifest: the file's, without its extension."""
        return stem(self.uri)

    @property
    def whole(self) -> bool:
        """Whether the row takes in all of the slide."""
        return self.region == WHOLE


def slide_rows(source: SlideSource, storage: Storage) -> list[SlideRow]:
    """The slides that `source` names.

    Raises InputError for a row that cannot be understood, two slides of one name, and regions that overlap:
    their tiles could not be told apart.
    """
    if source.index is None:
        rows = [SlideRow(path, case=plain(stem(path))) for path in source.paths]
    else:
        index = read_index(source.index, storage, needed=("slide",))
        rows = [_row(source.index, values) for values in index.rows]
    for position, row in enumerate(rows):
        for earlier in rows[:position]:
            if earlier.name != row.name:
                continue
            if earlier.uri != row.uri:
                raise InputError(f"{earlier.uri} and {row.uri} are both named {row.name!r}; rename one of the files.")
            if _overlap(earlier.region, row.region):
                raise InputError(
                    f"slide {row.uri} is named twice with regions that overlap; give each row a region "
                    "(left, top, right, bottom) of its own or remove one."
                )
            if earlier.mpp != row.mpp:
                raise InputError(
                    f"slide {row.uri} is declared with two values of mpp, {earlier.mpp} and {row.mpp}; a slide has one."
                )
    return rows


def _row(index: str, values: dict[str, str]) -> SlideRow:
    uri = beside(index, values["slide"])
    sides = ("left", "top", "right", "bottom")
    numbers: dict[str, float | None] = {}
    for column in ("mpp", *sides):
        text = values.get(column, "")
        try:
            numbers[column] = float(text) if text else None
        except ValueError:
            raise InputError(f"{index}: {column} of slide {uri} is {text!r}; a number was expected.") from None
    given = [numbers[side] for side in sides if numbers[side] is not None]
    region = WHOLE
    if given:
        left, top, right, bottom = region = tuple(numbers[side] or 0.0 for side in sides)  # type: ignore[assignment]
        if len(given) < 4 or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InputError(
                f"{index}: the region of slide {uri} is {region}; fractions with 0 <= left < right <= 1 and "
                "0 <= top < bottom <= 1 were expected."
            )
    mpp = numbers["mpp"]
    if mpp is not None and not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        raise InputError(
            f"{index}: mpp of slide {uri} is {mpp:g}; between {PLAUSIBLE_MPP[0]} and {PLAUSIBLE_MPP[1]:g} "
            "microns per pixel were expected."
        )
    return SlideRow(uri, plain(values.get("case", "") or stem(uri)), mpp, region)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])
