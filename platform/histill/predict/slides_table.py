"""Write a CSV of the predicted slides, for spreadsheets and statistics."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from histill.outputs import OutputSpec
from histill.tiles.tally import NO_CLASS, SlideTally

SLIDES_NAME = "slides.csv"


def write_csv(
    tallies: Iterable[SlideTally],
    outputs: OutputSpec,
    cases: Mapping[str, Sequence[str]],
    files: Mapping[str, str],
) -> bytes:
    """A UTF-8 CSV with one line per slide: its tiles and their area, each class's share and tiles, its files' name.

    The share is a mean over the tiles, `share_<class>` of a segmenter and `mean_probability_<class>` of a classifier;
    empty if no tile could be decoded. `tiles_<class>` counts the tiles predicted as the class. With multiple labels a
    tile may count for several classes, and `tiles_none` counts those without any.
    """
    classes, mean = outputs.scored, "share" if outputs.dense else "mean_probability"
    text = io.StringIO(newline="")
    none = [""] if outputs.multi_label and NO_CLASS not in classes else []
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["slide", "case", "tiles", "undecodable", "area_mm2", *(f"{mean}_{name}" for name in classes),
         *(f"tiles_{name or NO_CLASS}" for name in [*classes, *none]), "heatmap"]
    )  # fmt: skip
    for tally in tallies:
        means = [f"{value:.6f}" for value in tally.means] if tally.tiles > tally.undecodable else [""] * len(classes)
        rows.writerow(
            [tally.slide, "|".join(cases.get(tally.slide, ())), tally.tiles, tally.undecodable,
             f"{tally.area_mm2:.6f}", *means, *(tally.tiles_of(name) for name in [*classes, *none]),
             files.get(tally.slide, "")]
        )  # fmt: skip
    return text.getvalue().encode()
