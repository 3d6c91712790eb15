"""Render a score as one self-contained HTML page."""

import base64
import math
import re
from collections.abc import Mapping
from importlib import resources

from histill.artifacts.model_folder import ModelCard
from histill.evaluate.robustness import EXPLAINED
from histill.evaluate.score import Score

TEMPLATE_NAME = "report.html"
_WORST_SLIDES = 20
_FEW_SHOT = re.compile(r"few_shot_(\d+)_balanced_accuracy(_sd)?")
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


def render_report(score: Score, card: ModelCard, model: str, tiles: str, pictures: Mapping[str, bytes]) -> str:
    """Render `score` as HTML with embedded `pictures` (title -> PNG); `model` and `tiles` are the scored URIs."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": _figure, "title": _title, "share": _share}
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE_NAME).read_text("utf-8"))
    return template.render(
        score=score,
        card=card,
        model=model,
        tiles=tiles,
        worst=dict(list(score.by_slide.items())[:_WORST_SLIDES]),
        explained=EXPLAINED,
        columns=list(next(iter(score.classes.values()))),
        pictures={title: base64.b64encode(png).decode() for title, png in pictures.items()},
    )


def _title(name: str) -> str:
    if shots := _FEW_SHOT.fullmatch(name):
        cases = f"{shots[1]} case{'s' if shots[1] != '1' else ''}"
        return f"balanced accuracy from {cases} for each class{', sd' if shots[2] else ''}"
    return _TITLES.get(name, name.replace("_", " "))


def _figure(value: object) -> str:
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


def _share(value: float, of: float) -> str:
    """The width of a bar in per cent."""
    return "0" if math.isnan(value) or not of else f"{100 * max(0.0, min(1.0, value / of)):.0f}"
