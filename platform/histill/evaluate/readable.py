"""Write a score's figures for readers: on the page of the report, and as a table on the terminal."""

import math
import re

from histill.cluster.progress import count_of
from histill.evaluate.score import Score

SD = "_sd"  # at the end of the name of a standard deviation over draws
INTERVAL = "95 % over cases"
_FEW_SHOT = re.compile(r"few_shot_(\d+)_balanced_accuracy")
_TITLES = {
    "dice": "Dice",
    "iou": "IoU",
    "miou": "mean IoU",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "calibration_error": "calibration error",
    "ms_at_batch_1": "ms for one tile",
    "ms_at_batch_32": "ms for 32 tiles",
    "tiles_per_s": "tiles/s, 32 at once",
    "knn_balanced_accuracy": "balanced accuracy of nearest neighbors",
    "retrieval_map": "mean average precision of retrieval",
    "width": "length of an embedding",
    "peak_memory_mb": "memory for 32 tiles, MB",
}


def list_figures(score: Score) -> list[tuple[str, str, str]]:
    """Name, value and 95 % interval of each figure; that of random draws has their standard deviation (sd) beside it.

    The interval is empty where there is none: of a single case, or without resamples.
    """
    return [
        (name_figure(name), _show_value(name, score), _show_interval(name, score))
        for name in score.figures
        if not name.endswith(SD)
    ]


def render_table(score: Score) -> str:
    """The figures as a plain table, below a line that says what they are of."""
    from tabulate import tabulate

    count = f"{count_of(score.tiles, 'tile')} of {count_of(score.slides, 'slide')} and {count_of(score.cases, 'case')}"
    headers = ["figure", "value", INTERVAL] if score.intervals else ["figure", "value"]
    rows = [row[: len(headers)] for row in list_figures(score)]
    table = tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", "right", "right")[: len(headers)])
    return f"split {score.split}, {count}, held against {score.reference}:\n{table}"


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
