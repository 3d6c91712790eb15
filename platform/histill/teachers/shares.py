"""The shares of a teacher's classes in each slide, and warnings about implausible ones."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from histill.config.common import Storage
from histill.outputs import OutputSpec
from histill.storage.records import Record, read_record
from histill.storage.uris import join
from histill.stream.decode import CorruptTile
from histill.stream.responses import ZERO, decode_levels
from histill.teachers.teacher import Teacher
from histill.tiles.manifest import Manifest
from histill.tiles.tally import SlideTally, measure_areas, tally_tiles

SHARES_NAME = "shares.json"
# Usual share of nuclei in H&E tissue; values outside are more often a wrong resolution or stain than real.
NUCLEI = (0.005, 0.6)
_ALL = 0.995  # share above which a teacher predicts only one class
_LEAST_TILES = 20  # minimum for the warning about a single class
_SHOWN, _NAMED = 20, 3  # rows of the table, names in a warning


class Shares(Record):
    """The shares of a teacher's classes in each slide, or in each case for image sets without slides.

    A share is of pixels, or of tiles for a teacher that responds to whole tiles.
    """

    noun: ClassVar[str] = "a table of shares"
    remedy: ClassVar[str] = "cache the responses again"

    of: str  # slide or case
    classes: tuple[str, ...]
    dense: bool
    mpp: float  # of the tiles
    tallies: tuple[SlideTally, ...]

    def values(self) -> dict[str, Any]:
        """By name: the tiles, the undecodable ones among them, and the share of each class."""
        return {
            tally.slide: {"tiles": tally.tiles, "undecodable": tally.undecodable, "shares": self._shares(tally)}
            for tally in self.tallies
        }

    def implausible(self) -> dict[str, float]:
        """By name, the nuclei shares outside `NUCLEI`; empty for a teacher without a nuclei class."""
        marked = [index for index, name in enumerate(self.classes) if "nucle" in name.lower()]
        if not (self.dense and marked):
            return {}
        shares = {each.slide: sum(each.means[index] for index in marked) for each in self.tallies if _decoded(each)}
        return {name: share for name, share in shares.items() if not NUCLEI[0] <= share <= NUCLEI[1]}

    def warnings(self) -> Iterator[str]:
        """One sentence for each implausible finding."""
        cause = f"their resolution may not be the stated {self.mpp:g} um/px, or their stain may not suit this teacher."
        odd = self.implausible()
        if odd:
            named = ", ".join(f"{share:.2%} of {self.of} {name}" for name, share in list(odd.items())[:_NAMED])
            more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
            low, high = (f"{100 * each:g}" for each in NUCLEI)
            yield f"the teacher takes {named}{more} for nuclei, where {low} to {high} % are usual: {cause}"
        decoded = sum(map(_decoded, self.tallies))
        if decoded < _LEAST_TILES:
            return
        if len(self.classes) < 2:
            return
        means = np.array([each.sums for each in self.tallies if _decoded(each)]).sum(0) / decoded
        if means.max() >= _ALL and not odd:
            yield f"the teacher predicts {self.classes[int(means.argmax())]!r} for all {decoded} tiles: {cause}"

    def table(self) -> str:
        """The slides as a human-readable table, implausible ones first."""
        from tabulate import tabulate

        odd = self.implausible()
        noted = 1 if odd else 0  # columns
        ordered = sorted(self.tallies, key=lambda each: each.slide not in odd)
        rows = [
            (each.slide, each.tiles, *(f"{share:.2%}" for share in self._shares(each).values()),
             *["implausible" if each.slide in odd else ""][:noted])
            for each in ordered[:_SHOWN]
        ]  # fmt: skip
        table = tabulate(rows, headers=(self.of, "tiles", *self.classes, *["note"][:noted]), disable_numparse=True)
        return table + (f"\n... and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else "")

    def _shares(self, tally: SlideTally) -> dict[str, float]:
        return dict(zip(self.classes, tally.means, strict=True)) if _decoded(tally) else {}


def _decoded(tally: SlideTally) -> int:
    return tally.tiles - tally.undecodable


def group_by(manifest: Manifest) -> str:
    """The unit of the shares: slides, or cases for an image set, where every image counts as a slide of its own."""
    return "case" if manifest.header.slides is None else "slide"


def tally_responses(
    answers: Sequence[bytes], teacher: Teacher, manifest: Manifest, rows: np.ndarray, side: int
) -> list[SlideTally]:
    """Tally the stored `answers` to the manifest `rows` (int64) by slide; dense ones are `side` pixels wide."""
    outputs = teacher.outputs
    shares = [_shares_of(answer, outputs, side) for answer in answers]
    names = [None if each is None else _name(each, outputs) for each in shares]
    owners = manifest.read([group_by(manifest)], rows)[0]
    table = pa.table(
        {
            "slide": owners,
            "class": pa.array(names, pa.string()),
            "probabilities": pa.array([None if each is None else each.tolist() for each in shares]),
        }
    )
    return tally_tiles(table, measure_areas(manifest, rows), len(outputs.classes))


def _shares_of(answer: bytes, outputs: OutputSpec, side: int) -> np.ndarray | None:
    """Class shares of one tile, float64 [K], 0 or 1 for a whole-tile response; None if it could not be decoded."""
    if outputs.kind == "encoder":
        return np.zeros(0) if answer else None
    channels = outputs.packed_channels
    try:
        levels = decode_levels(answer, channels, side if outputs.dense else 1) if answer else None
    except CorruptTile:
        levels = None
    if levels is None:
        return None
    if outputs.multi_label:
        return (levels.ravel() > ZERO).astype(np.float64)
    highest, likeliest = levels[0].copy(), np.zeros(levels[0].shape, np.uint8)
    for index, level in enumerate(levels[1:], start=1):
        likeliest[level > highest] = index
        np.maximum(highest, level, out=highest)
    likeliest[highest <= ZERO] = len(outputs.classes)  # the logit of class 0 is 0
    counts = [np.count_nonzero(likeliest == index) for index in range(channels)]
    return np.array([likeliest.size - sum(counts), *counts]) / likeliest.size


def _name(shares: np.ndarray, outputs: OutputSpec) -> str:
    if outputs.kind == "encoder":
        return ""
    return "|".join(outputs.names(shares if outputs.multi_label else shares.argmax()))


def read_shares(uri: str, storage: Storage) -> Shares | None:
    """Read the shares stored with the responses at `uri`; None when there are none."""
    try:
        return read_record(Shares, join(uri, SHARES_NAME), storage)
    except FileNotFoundError:
        return None
