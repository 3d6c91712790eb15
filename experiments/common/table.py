"""Means and standard deviations of the arms: as JSON, as a table, as a picture."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

FIGURES = {"classification": "balanced accuracy", "region": "mIoU", "nuclei": "Dice"}


@dataclass(frozen=True)
class Cell:
    """One fine-tuned student."""

    student: str
    arm: str
    target: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.student}-{self.arm}-{self.target}-{self.fraction:g}-{self.seed}"


Summary = dict[str, Any]


def summary(values: dict[Cell, float], student: str) -> Summary:
    """target -> fraction -> arm -> mean, standard deviation (null for one seed) and number of seeds."""
    gathered: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for cell, value in values.items():
        if cell.student == student:
            gathered[cell.target, f"{cell.fraction:g}", cell.arm].append(value)
    found: Summary = {}
    for (target, fraction, arm), each in gathered.items():
        spread = round(statistics.stdev(each), 4) if len(each) > 1 else None
        found.setdefault(target, {}).setdefault(fraction, {})[arm] = {
            "mean": round(statistics.mean(each), 4), "sd": spread, "n": len(each),
        }  # fmt: skip
    return found


def table(found: Summary, arms: Iterable[str]) -> str:
    """Markdown."""
    arms = list(arms)
    rows = [
        [f"{target} ({FIGURES[target]})", f"{float(fraction):.0%}", *(_said(cells.get(arm)) for arm in arms)]
        for target, fractions in found.items()
        for fraction, cells in fractions.items()
    ]
    return tabulate(rows, headers=["target", "cases", *arms], tablefmt="github")


def draw(found: Summary, arms: Iterable[str], path: Path) -> None:
    """Draw one panel per target: the figure against the fraction of the training cases."""
    from matplotlib.figure import Figure

    arms = list(arms)
    figure = Figure(figsize=(4 * len(found), 3.6), layout="constrained")
    for axes, (target, fractions) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for place, arm in enumerate(arms):
            cells = [(float(fraction), arms_[arm]) for fraction, arms_ in fractions.items() if arm in arms_]
            shares = [100 * share * 1.06**place for share, _ in cells]  # side by side, not one over another
            means, spreads = [cell["mean"] for _, cell in cells], [cell["sd"] or 0 for _, cell in cells]
            axes.errorbar(shares, means, yerr=spreads, marker="o", capsize=3, label=arm.replace("_", " "))
        axes.set_xscale("log")
        ticks = [100 * float(fraction) for fraction in fractions]
        axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks], minor=False)
        axes.minorticks_off()
        axes.set(title=target, xlabel="training cases", ylabel=FIGURES[target])
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _said(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['mean']:.3f}" + ("" if cell["sd"] is None else f" ± {cell['sd']:.3f}")
