"""Write a score's figures for readers: on the page of the report, and as a table on the terminal."""

import math
import re
from collections.abc import Mapping

from histill.cluster.progress import count_of
from histill.evaluate.groups import Group, find_gap
from histill.evaluate.score import Score

SD = "_sd"  # at the end of the name of a standard deviation over draws
INTERVAL = "95 % over cases"
GROUP_INTERVAL = "90 % of all groups"
_GROUP_ALIGN = ("left", *["right"] * 5)
_FEW_SHOT = re.compile(r"few_shot_(\d+)_balanced_accuracy")
_TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "miou": "mean IoU",
    "pq": "panoptic quality",
    "aji": "aggregated Jaccard index",
    "object_f1": "F1 of objects",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "calibration_error": "calibration error",
    "engine": "run by",
    "ms_at_batch_1": "ms for one tile",
    "ms_at_batch_32": "ms for 32 tiles",
    "tiles_per_s": "tiles/s, 32 at once",
    "knn_balanced_accuracy": "balanced accuracy of nearest neighbors",
    "retrieval_map": "mean average precision of retrieval",
    "width": "length of an embedding",
    "peak_memory_mb": "memory for 32 tiles, MB",
}


_MEANINGS = {
    "dice": "overlap with the reference, mean over the classes without the background",
    "miou": "intersection over union, mean over all classes: the background counts as well, and is easy, so that this "
    "figure can be above the Dice",
    "pq": "overlap of matching objects times their F1, mean over the classes; touching objects that are taken for one "
    "cost most here",
    "aji": "intersection over union of objects, each with its best partner; large objects count for more",
    "object_f1": "harmonic mean of precision and recall of objects that overlap by more than half (IoU), mean over the "
    "classes",
    "balanced_accuracy": "mean over the classes of the share of their tiles that is found; with several labels a tile, "
    "of the mean of recall and specificity",
    "macro_f1": "mean over the classes of the harmonic mean of precision and recall",
    "auroc": "how surely tiles of a class rank above the others by its probability, mean over the classes; 0.5 is "
    "chance",
    "calibration_error": "mean distance between a probability and how often it is right; 0 is best",
    "accuracy": "share of all tiles that is decided rightly, which frequent classes dominate",
}


def describe_figure(name: str) -> str:
    """What a figure means, in a sentence without its end; empty where its name says it."""
    return _MEANINGS.get(name, "")


def list_figures(score: Score) -> list[tuple[str, str, str, str]]:
    """Name, value, 95 % interval and meaning of each figure; that of random draws has their standard deviation (sd)
    beside it.

    The interval is empty where there is none: of a single case, or without resamples.
    """
    return [
        (name_figure(name), _show_value(name, score), _show_interval(name, score), describe_figure(name))
        for name in score.figures
        if not name.endswith(SD)
    ]


def render_table(score: Score) -> str:
    """The figures as a plain table, below a line that says what they are of."""
    from tabulate import tabulate

    headers = ["figure", "value", INTERVAL] if score.intervals else ["figure", "value"]
    rows = [row[: len(headers)] for row in list_figures(score)]
    table = tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "right", "right")[: len(headers)])
    lines = [f"split {score.split}, {name_tiles(score)}:", table]
    if {"dice", "miou"} <= score.figures.keys():
        lines += ["The mean IoU counts the background as a class, the Dice does not."]
    for column, groups in score.by_column.items():
        lines += ["", f"{name_figure(score.main)} by {column}, a gap of {format_figure(find_gap(groups))}:"]
        titles = (column, "tiles", "cases", "value", "less the others'", GROUP_INTERVAL)
        lines += [tabulate(list_groups(groups), headers=titles, disable_numparse=True, colalign=_GROUP_ALIGN)]
    if doubt := doubt_score(score):
        lines += [f"warning: {doubt}"]
    return "\n".join(lines)


def list_groups(groups: Mapping[str, Group]) -> list[tuple[str, str, str, str, str, str]]:
    """Value, tiles, cases, figure, difference from the others and its interval of each group of a column."""
    return [
        (
            name,
            format_figure(each.tiles),
            format_figure(each.cases),
            format_figure(each.figure),
            f"{each.difference:+.3f}",
            "-" if math.isnan(each.low) else f"{each.low:+.3f} to {each.high:+.3f}",
        )
        for name, each in groups.items()
    ]


def doubt_score(score: Score) -> str:
    """A sentence if the model has learned from what it was scored on, else empty."""
    if not score.seen_cases:
        return ""
    same = f" ({count_of(score.seen_tiles, 'tile')} byte for byte)" if score.seen_tiles else ""
    return (
        f"the model learned from, or was chosen by, {score.seen_cases} of {count_of(score.cases, 'case')}{same}, so "
        "that these figures say little about new ones; score it on others."
    )


def name_tiles(score: Score) -> str:
    """What was scored, and against what."""
    tiles = f"{count_of(score.tiles, 'tile')} of {count_of(score.slides, 'slide')}"
    if score.unit == "image":
        tiles = count_of(score.tiles, "image")
    of_cases = f"{' of' if score.unit == 'image' else ' and'} {count_of(score.cases, 'case')}"
    return f"{tiles}{of_cases}, held against {score.reference_name or score.reference}"


def name_figure(name: str) -> str:
    """The name of a figure in plain words."""
    if shots := _FEW_SHOT.fullmatch(name):
        return f"balanced accuracy from {shots[1]} case{'s' if shots[1] != '1' else ''} for each class"
    return _TITLES.get(name, name.replace("_", " "))


def format_figure(value: object) -> str:
    """Format a number: shares with three digits, tiny ones with one, counts with commas, unknown values as a dash."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "-"
    if 0 < abs(value) < 0.0005:
        return f"{value:.0e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _show_value(name: str, score: Score) -> str:
    spread = score.figures.get(f"{name}{SD}", math.nan)
    value = format_figure(score.figures[name])
    return value if math.isnan(spread) else f"{value} (sd {format_figure(spread)} over draws)"


def _show_interval(name: str, score: Score) -> str:
    if name not in score.intervals:
        return ""
    low, high = score.intervals[name]
    return f"{format_figure(low)} to {format_figure(high)}"
