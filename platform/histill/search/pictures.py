"""Plot a sweep as PNG images."""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from histill.config.search_students import SearchConfig, SearchRange
from histill.search.pareto import pareto_front
from histill.search.results import Sweep, TrialResult, metric_label

_COSTS = {"gmacs": "GMACs of one tile", "latency_ms": "ms for one tile, one CPU thread"}
_DPI = 120
_ACROSS = 3  # panels in a row
_SHORT = 6  # letters of a choice that fit beside the next
_RANKED = 20  # trials from which importance is drawn: it tells the best tenth, here two, from the others


def draw_front(sweep: Sweep) -> bytes:
    """Plot all trials by quality and cost, with the front as a line, whose trials have their numbers."""
    figure = _figure(5, 3.6)
    axes = figure.subplots()
    points, best = sweep.points, pareto_front(sweep.points)
    axes.scatter([point.cost for point in points], [point.quality for point in points], color="gray", label="trials")
    axes.plot(
        [point.cost for point in best], [point.quality for point in best], "o-", drawstyle="steps-post", label="front"
    )
    for point in best:
        name = point.name.rpartition("_")[2].lstrip("0") or "0"  # Tune's number of the trial
        axes.annotate(name, (point.cost, point.quality), textcoords="offset points", xytext=(4, -10), fontsize=8)
    axes.set(xlabel=_COSTS[sweep.cost], ylabel=metric_label(sweep.metric))
    axes.margins(0.15)
    axes.legend(
        fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False
    )  # above: no number is hidden
    return _png(figure)


def draw_study(config: SearchConfig, sweep: Sweep) -> dict[str, bytes]:
    """Plot the trials' quality by the `values` of each key, and of enough trials the `importance` of the keys.

    Importance is by PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255): what distinguishes the best tenth of the
    trials from the rest. It needs differing trials, 20 or more.
    """
    trials = [trial for trial in sweep.trials if trial.counts]
    if len(trials) < 2:
        return {}
    pictures = {"values": _draw_values(config, sweep, trials)}
    weights = _weigh_keys(config, sweep) if len(trials) >= _RANKED else {}
    return pictures | ({"importance": _draw_importance(weights, len(trials))} if weights else {})


def _draw_values(config: SearchConfig, sweep: Sweep, trials: Sequence[TrialResult]) -> bytes:
    """A panel for each key: the quality of each trial by the key's value, the best trial in color."""
    keys = [key for key in config.space if any(key in trial.values for trial in trials)]
    down = -(-len(keys) // _ACROSS)
    across = min(len(keys), _ACROSS)
    figure = _figure(0.6 + 3.2 * across, 2.9 * down)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flatten().tolist()
    for axes, key in zip(panels, keys, strict=False):
        draw, drawn = config.space[key], [trial for trial in trials if key in trial.values]
        names = [json.dumps(choice) for choice in draw.choice or ()]
        places = [names.index(json.dumps(trial.values[key])) if names else trial.values[key] for trial in drawn]
        colors = ["C0" if trial.trial == sweep.best.trial else "gray" for trial in drawn]
        axes.scatter(places, [trial.quality for trial in drawn], c=colors, alpha=0.6)
        axes.set_xlabel(key, fontsize=8)
        if names:
            axes.set_xticks(range(len(names)), names, rotation=20 if max(map(len, names)) > _SHORT else 0)
        elif draw.loguniform:
            _scale_log(axes, places)
        elif draw.integer:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.15)
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    for axes in panels[::across]:
        axes.set_ylabel(metric_label(sweep.metric))
    return _png(figure)


def _scale_log(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, within less than two decades also at 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    subs = (1.0, 2.0, 5.0) if max(values) < 50 * min(values) else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _weigh_keys(config: SearchConfig, sweep: Sweep) -> dict[str, float]:
    """The importance of each key, which add up to 1; empty if the trials do not differ."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about experimental features
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(_study(config, sweep), evaluator=evaluator))
        except (RuntimeError, ValueError):
            return {}


def _draw_importance(weights: Mapping[str, float], trials: int) -> bytes:
    figure = _figure(6, 1.4 + 0.35 * len(weights))
    axes = figure.subplots()
    keys = sorted(weights, key=lambda key: weights[key])
    axes.barh(keys, [weights[key] for key in keys])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="share of the importance")
    axes.set_title(f"What tells the best tenth of {trials} trials from the others: a hint, not a test", fontsize=8)
    return _png(figure)


def _study(config: SearchConfig, sweep: Sweep) -> Any:
    """The trials that count, as an Optuna study."""
    import optuna

    study = optuna.create_study(direction="maximize")
    for trial in sweep.trials:
        if trial.counts:
            values = {key: _optunas(config.space[key], value) for key, value in trial.values.items()}
            ranges = {key: _range(config.space[key]) for key in trial.values}
            study.add_trial(optuna.create_trial(params=values, distributions=ranges, value=trial.quality))
    return study


def _optunas(draw: SearchRange, value: Any) -> Any:
    """Encode a choice as JSON, since Optuna's categories cannot be lists."""
    return value if draw.choice is None else json.dumps(value)


def _range(draw: SearchRange) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if draw.choice is not None:
        return CategoricalDistribution([json.dumps(value) for value in draw.choice])
    if draw.integer is not None:
        return IntDistribution(*draw.integer)
    low, high = draw.uniform or draw.loguniform or (0.0, 0.0)
    return FloatDistribution(low, high, log=draw.loguniform is not None)


def _figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches, in the style of all pictures of a sweep."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight")  # nothing outside of the axes is cut
    return file.getvalue()
