"""Render a score as one self-contained HTML page."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

from histill.artifacts.model_folder import ModelCard
from histill.cluster.progress import count_of
from histill.evaluate.groups import find_gap
from histill.evaluate.panels import Panel
from histill.evaluate.readable import (
    describe_figure,
    doubt_score,
    format_figure,
    list_figures,
    list_groups,
    name_figure,
    name_tiles,
)
from histill.evaluate.robustness import EXPLAINED
from histill.evaluate.score import Score
from histill.tiles.manifest import Manifest

TEMPLATE_NAME = "report.html"
_WORST = 20  # slides or cases


@dataclass(frozen=True)
class Report:
    """What the page shows beside the score."""

    card: ModelCard
    model: str  # URI of the scored model
    manifest: Manifest
    command: str  # that makes the page again
    made: datetime
    panels: Mapping[str, Sequence[Panel]]  # tiles by title
    pictures: Mapping[str, bytes]  # PNG by title


def render_report(score: Score, report: Report) -> str:
    """Render `score` as HTML with embedded pictures."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "count": count_of, "figure": format_figure, "title": name_figure, "share": _share, "base64": _encode,
        "meaning": describe_figure, "groups": list_groups, "gap": find_gap,
    }  # fmt: skip
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE_NAME).read_text("utf-8"))
    manifest, by_part = report.manifest, score.by_case or score.by_slide
    return template.render(
        score=score,
        report=report,
        card=report.card,
        figures=list_figures(score),
        scored=name_tiles(score),
        doubt=doubt_score(score),
        splits={split: manifest.counts_of(split)[:2] for split in ("train", "val", "test")},
        part="case" if score.by_case else "slide",
        parts=len(by_part),
        worst=dict(list(by_part.items())[:_WORST]),
        explained=EXPLAINED,
        columns=list(next(iter(score.classes.values()))),
        decided=[(name, row, sum(row)) for name, row in zip(score.classes, score.confusion, strict=False)],
    )


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _share(value: float, of: float) -> str:
    """The width of a bar in per cent."""
    return "0" if math.isnan(value) or not of else f"{100 * max(0.0, min(1.0, value / of)):.0f}"
