"""Render a score as one self-contained HTML page."""

import base64
import math
from collections.abc import Mapping
from importlib import resources

from histill.artifacts.model_folder import ModelCard
from histill.cluster.progress import count_of
from histill.evaluate.readable import format_figure, list_figures, name_figure
from histill.evaluate.robustness import EXPLAINED
from histill.evaluate.score import Score

TEMPLATE_NAME = "report.html"
_WORST_SLIDES = 20


def render_report(score: Score, card: ModelCard, model: str, tiles: str, pictures: Mapping[str, bytes]) -> str:
    """Render `score` as HTML with embedded `pictures` (title -> PNG); `model` and `tiles` are the scored URIs."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": count_of, "figure": format_figure, "title": name_figure, "share": _share}
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE_NAME).read_text("utf-8"))
    return template.render(
        score=score,
        figures=list_figures(score),
        card=card,
        model=model,
        tiles=tiles,
        worst=dict(list(score.by_slide.items())[:_WORST_SLIDES]),
        explained=EXPLAINED,
        columns=list(next(iter(score.classes.values()))),
        pictures={title: base64.b64encode(png).decode() for title, png in pictures.items()},
    )


def _share(value: float, of: float) -> str:
    """The width of a bar in per cent."""
    return "0" if math.isnan(value) or not of else f"{100 * max(0.0, min(1.0, value / of)):.0f}"
