"""Tally predictions by slide: tiles of each class, and the shares of the classes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from histill.cluster.sharded import run_sharded
from histill.tiles.manifest import Manifest

NO_CLASS = "none"  # name under which tiles without a class are counted


@dataclass(frozen=True)
class SlideTally:
    """The predictions for one slide, or for a part of its tiles."""

    slide: str
    tiles: int  # including those that could not be decoded
    undecodable: int
    area_mm2: float  # of the tiles that could be decoded
    said: dict[str, int]  # tiles by predicted class; several classes joined by |, "" for none
    sums: Sequence[float]  # sum of each class's probability, or share, over the decoded tiles

    def add(self, other: "SlideTally") -> "SlideTally":
        """Add up the tallies of two parts of one slide."""
        return SlideTally(
            slide=self.slide,
            tiles=self.tiles + other.tiles,
            undecodable=self.undecodable + other.undecodable,
            area_mm2=self.area_mm2 + other.area_mm2,
            said=dict(Counter(self.said) + Counter(other.said)),
            sums=[one + more for one, more in zip(self.sums, other.sums, strict=True)],
        )

    @property
    def means(self) -> tuple[float, ...]:
        """The mean of each class's probability, or share, over the decoded tiles; there must be at least one."""
        return tuple(total / (self.tiles - self.undecodable) for total in self.sums)

    def tiles_of(self, name: str) -> int:
        """The number of tiles predicted to be of the class `name`, alone or with others."""
        return sum(count for said, count in self.said.items() if said == name or name in said.split("|"))


def measure_areas(manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    """The area in mm2, float64 [rows], of each of `rows` (int64) of the manifest."""
    table = manifest.read(["mpp", "size_px"], rows)
    return np.asarray((table["mpp"].to_numpy() * table["size_px"].to_numpy() / 1000) ** 2)


def tally_tiles(predicted: pa.Table, areas: np.ndarray, classes: int) -> list[SlideTally]:
    """Tally `predicted` (columns slide, class and probabilities, one row per tile) by slide, in order.

    Args:
        areas: float64 [rows], mm2 of each tile.
        classes: number of classes with a probability.
    """
    slides = predicted["slide"].to_pylist()
    number = {slide: index for index, slide in enumerate(dict.fromkeys(slides))}
    owner = np.array([number[slide] for slide in slides])
    names = np.array(predicted["class"].to_pylist(), object)
    decoded = np.array([name is not None for name in names], bool)
    values = np.array([each or [0.0] * classes for each in predicted["probabilities"].to_pylist()], np.float64)
    found = []
    for slide, index in number.items():
        there = owner == index
        sound = there & decoded
        found.append(
            SlideTally(
                slide=slide,
                tiles=int(there.sum()),
                undecodable=int((there & ~decoded).sum()),
                area_mm2=float(areas[sound].sum()),
                said=dict(Counter(names[sound].tolist())),
                sums=values[sound].sum(0).tolist(),
            )
        )
    return found


def tally_shards(shards: Iterable[Sequence[Mapping[str, Any]]], tiles: int, title: str) -> list[SlideTally]:
    """Collect the tallies of all `shards`, sent by workers as plain values; they must add up to `tiles` tiles.

    Shows progress under `title`; see `run_sharded`.
    """
    found = run_sharded(
        shards, tiles, title=title, unit="tiles", count=lambda slides: sum(each["tiles"] for each in slides)
    )
    return [SlideTally(**each) for slides in found for each in slides]


def join_tallies(parts: Iterable[SlideTally]) -> dict[str, SlideTally]:
    """Merge the tallies of parts into one for each slide, ascending by name."""
    slides: dict[str, SlideTally] = {}
    for part in parts:
        slides[part.slide] = slides[part.slide].add(part) if part.slide in slides else part
    return dict(sorted(slides.items()))


def count_classes(tallies: Iterable[SlideTally]) -> dict[str, int]:
    """The number of tiles of each predicted class, ascending by name."""
    counts: Counter[str] = Counter()
    for tally in tallies:
        counts.update({name or NO_CLASS: count for name, count in tally.said.items()})
    return dict(sorted(counts.items()))
