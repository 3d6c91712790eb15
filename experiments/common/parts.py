"""Figures of models by fraction of the labeled cases and by seed: as JSON, as a table."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

Found = dict[str, dict[str, dict[str, Any]]]
"""fraction -> model -> mean, sd and so on."""


@dataclass(frozen=True)
class Part:
    """One figure."""

    model: str
    fraction: float
    seed: int
    value: float
    interval: tuple[float, float] | None = None  # 95 %, over the test cases


def summarize(parts: Iterable[Part]) -> Found:
    """fraction -> model -> mean, standard deviation (null for one) and number of seeds, and each seed's interval."""
    gathered: dict[tuple[str, str], list[Part]] = defaultdict(list)
    for part in sorted(parts, key=lambda part: (part.fraction, part.seed)):
        gathered[f"{part.fraction:g}", part.model].append(part)
    found: Found = {}
    for (at, model), each in gathered.items():
        values = [part.value for part in each]
        spread = round(statistics.stdev(values), 4) if len(values) > 1 else None
        models = found.setdefault(at, {})
        models[model] = {"mean": round(statistics.mean(values), 4), "sd": spread, "n": len(values)}
        if each[0].interval is not None:
            models[model]["intervals"] = [part.interval for part in each]
    return found


def with_best_teacher(models: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The figures, with those of the teacher that is best on the test cases under a name of its own."""
    best = max((name for name in models if name.startswith("teacher_")), key=lambda name: float(models[name]["mean"]))
    return models | {"best_teacher": models[best] | {"name": best}}


def table(figures: Found, figure: str) -> str:
    """Markdown: a row for each model, a column for each fraction of the cases; `figure` is what the cells hold."""
    models = list(dict.fromkeys(model for each in figures.values() for model in each))
    return tabulate(
        [[model, *(_said(each.get(model)) for each in figures.values())] for model in models],
        headers=[figure, *(f"{float(at):.0%} of the cases" for at in figures)],
        tablefmt="github",
    )


def _said(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['mean']:.3f}" + ("" if cell["sd"] is None else f" ± {cell['sd']:.3f}")
