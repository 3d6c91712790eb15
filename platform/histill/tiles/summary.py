"""Summarize a tile set for its user: slides, classes by split, missing classes, equal tiles."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from histill.config.ingest_tiles import SlideSource
from histill.tiles.contents import find_repeated
from histill.tiles.labels import split_labels
from histill.tiles.manifest import Manifest
from histill.tiles.masks import IGNORED
from histill.tiles.parts import Part
from histill.tiles.remedies import list_remedies
from histill.tiles.resolution import is_same_mpp
from histill.tiles.slide_records import SlideRecord
from histill.tiles.tile_rows import TileRows

NAMED = 5  # classes or slides that a sentence lists
SLIDES = 30  # slides that a table lists: those with the least tissue


def describe_slides(records: Iterable[SlideRecord]) -> list[tuple[str, str, int, str, str]]:
    """Name, cases, tiles, tissue and um/px of each slide, in order; of many, those with the least tissue."""
    shown = list(records)
    if len(shown) > SLIDES:
        shown = sorted(shown, key=lambda record: record.tissue)[:SLIDES]
    return [
        (record.name, ", ".join(record.cases), record.tiles, f"{record.tissue:.0%}", f"{record.mpp:.4g}")
        for record in shown
    ]


def count_labels(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Tiles of each class by split, classes ascending; each of a tile's labels, separated by |, counts.

    Empty when no tile has a label.
    """
    counts: dict[str, dict[str, int]] = {}
    for (label, split), count in manifest.count("label", "split"):
        for name in set(split_labels(label or "")):
            found = counts.setdefault(name, {})
            found[split] = found.get(split, 0) + count
    return dict(sorted(counts.items()))


def find_missing_classes(manifest: Manifest) -> list[str]:
    """A sentence for each split with tiles in which a class has none."""
    counts = count_labels(manifest)
    sentences = []
    for split in manifest.header.splits:
        missing = [repr(name) for name, found in counts.items() if not found.get(split)]
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            sentences.append(f"split {split!r} has no tile of {', '.join(missing[:NAMED])}{more}.")
    return sentences


def describe_mpp(parts: Iterable[Part], source: SlideSource | None) -> list[str]:
    """A sentence on slides whose resolution is another than the one given for those that record none."""
    if source is None or source.slide_mpp is None:
        return []
    records = {part.slide.name: part.slide for part in parts if part.slide}.values()
    other = [each for each in records if not is_same_mpp(each.mpp, source.slide_mpp)]
    if not other:
        return []
    more = f" and {len(other) - NAMED} more" if len(other) > NAMED else ""
    named = ", ".join(f"{each.source} ({each.mpp:.4g} um/px)" for each in other[:NAMED])
    return [
        f"{list_remedies(source).fallback} is {source.slide_mpp:g} um/px, and was not used for slides that have a "
        f"resolution of their own: {named}{more}."
    ]


def describe_profiles(parts: Iterable[Part]) -> list[str]:
    """A sentence on slides that were to be converted by their color profile and have none."""
    slides = {part.slide.name: part.slide for part in parts if part.slide and part.slide.icc is not None}
    without = [each.source for each in slides.values() if each.icc == "none"]
    if not without:
        return []
    more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
    return [
        f"{len(without)} of {len(slides)} slides have no color profile, so their colors were left as they are: "
        f"{', '.join(without[:NAMED])}{more}."
    ]


def describe_images(parts: Sequence[Part], meaning: Mapping[int, int] | None) -> list[str]:
    """A sentence for each conversion that was applied to images, and one for the classes of the masks."""
    done: dict[str, tuple[int, str]] = {}
    pixels: Counter[int] = Counter()
    for part in parts:
        pixels.update(part.class_pixels)
        for what, (count, first) in part.done.items():
            before, name = done.get(what, (0, first))
            done[what] = before + count, name
    sentences = [f"images {what}: {count} (first: {first})." for what, (count, first) in done.items()]
    if pixels:
        ignored = pixels.pop(IGNORED, 0)
        whole = pixels.total() + ignored
        shares = ", ".join(f"class {place} {count / whole:.2%}" for place, count in sorted(pixels.items())[:NAMED])
        more = f", {len(pixels) - NAMED} more" if len(pixels) > NAMED else ""
        read = "255 read as class 1" if (meaning or {}).get(255) == 1 else f"{ignored / whole:.2%} ignored"
        sentences.append(f"pixels of the masks: {shares}{more}; {read}.")
    return sentences


def find_warnings(manifest: Manifest) -> list[str]:
    """A sentence for each property of the set that harms training or distorts scores."""
    return [*find_missing_classes(manifest), *find_shared_tiles(manifest.rows)]


def find_equal_tiles(rows: TileRows) -> list[str]:
    """A sentence if tiles (rows of a manifest) are equal byte for byte."""
    groups = (
        _equal_ones(rows).group_by("content").aggregate([("tile_id", "min"), ("tile_id", "max"), ([], "count_all")])
    )
    if not groups.num_rows:
        return []
    first = min((group["tile_id_min"], group["tile_id_max"]) for group in groups.to_pylist())
    tiles = pc.sum(groups["count_all"]).as_py()
    return [f"{tiles} tiles are equal byte for byte (first: {first[0]} and {first[1]})."]


def find_shared_tiles(rows: TileRows) -> list[str]:
    """A sentence if tiles (rows of a manifest) of different splits are equal byte for byte."""
    places = _equal_ones(rows).group_by(["content", "split"]).aggregate([("tile_id", "min"), ([], "count_all")])
    shared = places.group_by("content").aggregate([("tile_id_min", "list"), ("count_all", "sum"), ([], "count_all")])
    shared = shared.filter(pc.greater(shared["count_all"], 1))
    if not shared.num_rows:
        return []
    first = min(tuple(sorted(names)[:2]) for names in shared["tile_id_min_list"].to_pylist())
    tiles = pc.sum(shared["count_all_sum"]).as_py()
    return [
        f"{tiles} tiles are equal and lie in different splits (first: {first[0]} and {first[1]}), so scores flatter; "
        "remove the copies from the index, or give them one case."
    ]


def _equal_ones(rows: TileRows) -> pa.Table:
    """Name, content and split of the tiles whose content occurs more than once."""
    found = rows.read(["tile_id", "content", "split"], find_repeated(rows.plain["content"]))
    counts = found["content"].value_counts()
    contents = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    return found.filter(pc.is_in(found["content"], contents))
