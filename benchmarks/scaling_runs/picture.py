"""Draw the measured speed-up, and the model's speed with its limits."""

from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.scaling_runs.measured import Measured
from benchmarks.scaling_runs.paper import COMPUTE, Assumed, Constants, first_bottleneck, seconds_per_tile, tiles_per_s

_MOST = 64


def draw(path: Path, measured: Measured, made: Constants, given: Assumed) -> None:
    """Write the picture as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    _speed_up(left, measured)
    _model(right, made, given)
    figure.savefig(path, dpi=120)


def _speed_up(axes: Any, measured: Measured) -> None:
    every = sorted({nodes for rows in measured.values() for nodes in rows})
    axes.plot(every, [nodes / every[0] for nodes in every], ":", color="gray", label="proportional")
    for name, rows in measured.items():
        nodes = list(rows)
        alone = rows[nodes[0]]["tiles_per_s"]
        speeds = [rows[each]["tiles_per_s"] / alone for each in nodes]
        spread = [
            [(rows[each]["tiles_per_s"] - rows[each]["least_tiles_per_s"]) / alone for each in nodes],
            [(rows[each]["most_tiles_per_s"] - rows[each]["tiles_per_s"]) / alone for each in nodes],
        ]
        axes.errorbar(nodes, speeds, yerr=spread, marker="o", capsize=3, label=f"{name}-bound")
        axes.annotate(f"{speeds[-1]:.2f}", (nodes[-1], speeds[-1]), xytext=(8, -3), textcoords="offset points")
    axes.set_xticks(every)
    axes.set(xlabel="nodes of a fixed CPU share", ylabel=f"tiles/s, times {every[0]} node", title="measured")
    axes.set_xlim(every[0] - 0.2, every[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right")


def _model(axes: Any, made: Constants, given: Assumed) -> None:
    gpus = list(range(1, _MOST + 1))
    speeds = [tiles_per_s(made, given, each) for each in gpus]
    top = 5 * _MOST * given.gpu_tiles_s
    axes.plot(gpus, speeds, color="black", linewidth=2.5, zorder=3, label="model")
    styles = cycle(("--", "-.", ":"))  # lines may coincide
    for name in seconds_per_tile(made, given, 1):
        ceiling = [each / seconds_per_tile(made, given, each)[name] for each in gpus]
        if ceiling[-1] < top or name == COMPUTE:
            axes.plot(gpus, ceiling, next(styles), linewidth=1.5, label=f"{name}: at most")
    found = first_bottleneck(made, given, _MOST)
    if found is not None:
        where, name = found
        axes.plot([where], [speeds[where - 1]], "o", color="black", markersize=8, zorder=4)
        axes.annotate(
            f"from {where} GPUs on:\n{name}",
            (where, speeds[where - 1]),
            xytext=(0.72, 0.95),
            textcoords="axes fraction",
            ha="right",
            va="top",
            arrowprops={"arrowstyle": "->"},
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axes.set_ylim(given.gpu_tiles_s / 2, top)
    axes.set(xlabel="GPUs", ylabel="tiles/s", title=f"on paper, {given.tiles / 1e6:,.0f} million tiles")
    axes.legend(loc="lower right", fontsize=9)
