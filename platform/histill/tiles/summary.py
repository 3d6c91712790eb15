"""What a tile set holds that its user should see: its slides, classes by split and those a split lacks, equal tiles."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from histill.tiles.manifest import Manifest
from histill.tiles.slide_records import SlideRecord

NAMED = 5  # classes in a sentence
SLIDES = 30  # in a table; those with the least tissue


def slide_rows(records: Iterable[SlideRecord]) -> list[tuple[str, str, int, str, str]]:
    """Name, cases, tiles, tissue and um/px of each slide, in their order; of many, those that show the least tissue."""
    shown = list(records)
    if len(shown) > SLIDES:
        shown = sorted(shown, key=lambda record: record.tissue)[:SLIDES]
    return [
        (record.name, ", ".join(record.cases), record.tiles, f"{record.tissue:.0%}", f"{record.mpp:.4g}")
        for record in shown
    ]


def class_counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Tiles of each class by split, classes ascending; several of one tile, separated by |, count each.

    Empty when no tile has a label.
    """
    pairs = manifest.table.group_by(["label", "split"]).aggregate([([], "count_all")]).to_pylist()
    counts: dict[str, dict[str, int]] = {}
    for pair in pairs:
        for name in {part.strip() for part in (pair["label"] or "").split("|")} - {""}:
            found = counts.setdefault(name, {})
            found[pair["split"]] = found.get(pair["split"], 0) + pair["count_all"]
    return dict(sorted(counts.items()))


def missing_classes(manifest: Manifest) -> list[str]:
    """A sentence for each split, of those that hold tiles, in which a class has none."""
    counts = class_counts(manifest)
    sentences = []
    for split in manifest.header.splits:
        missing = [repr(name) for name, found in counts.items() if not found.get(split)]
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            sentences.append(f"split {split!r} has no tile of {', '.join(missing[:NAMED])}{more}.")
    return sentences


def equal_content(rows: pa.Table) -> list[str]:
    """A sentence if tiles (rows of a manifest) are equal byte for byte, and one more if they lie in several splits."""
    groups = rows.group_by("content").aggregate(
        [("tile_id", "list"), ("split", "list"), ("split", "count_distinct"), ([], "count_all")]
    )
    groups = groups.filter(pc.greater(groups["count_all"], 1))
    sentences = []
    for found, said in (
        (groups, "are equal byte for byte"),
        (groups.filter(pc.greater(groups["split_count_distinct"], 1)), "are equal and lie in different splits"),
    ):
        if found.num_rows:
            first = sorted(sorted(names) for names in found["tile_id_list"].to_pylist())[0]
            tiles = pc.sum(found["count_all"]).as_py()
            sentences.append(f"{tiles} tiles {said} (first: {first[0]} and {first[1]}).")
    return sentences
