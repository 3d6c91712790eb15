"""Plot a sweep as PNG images."""

import io
import json
import warnings
from typing import Any

from histill.config.search_students import SearchConfig, SearchRange
from histill.search.pareto import pareto_front
from histill.search.results import Sweep, metric_label

_COSTS = {"gmacs": "GMACs of one tile", "latency_ms": "ms for one tile, one CPU thread"}
_DPI = 120


def draw_front(sweep: Sweep) -> bytes:
    """Plot all trials by quality and cost, with the front as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    points, best = sweep.points, pareto_front(sweep.points)
    axes.scatter([point.cost for point in points], [point.quality for point in points], color="gray", label="trials")
    axes.plot(
        [point.cost for point in best], [point.quality for point in best], "o-", drawstyle="steps-post", label="front"
    )
    for point in best:
        axes.annotate(point.name, (point.cost, point.quality), textcoords="offset points", xytext=(4, -10), fontsize=7)
    axes.set(xlabel=_COSTS[sweep.cost], ylabel=metric_label(sweep.metric))
    axes.margins(0.15)
    axes.legend(fontsize=8)
    return _png(figure)


def draw_study(config: SearchConfig, sweep: Sweep) -> dict[str, bytes]:
    """Plot `parallel_coordinates` of the trials' values and quality, and the `importance` of each key.

    Importance is by PED-ANOVA (Watanabe et al., IJCAI 2023, arXiv 2304.10255): what distinguishes the best trials from
    the rest. It needs several differing trials, and is left out otherwise.
    """
    import matplotlib
    import optuna
    from optuna.visualization import matplotlib as plots

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(config, sweep)
    name = metric_label(sweep.metric)
    # Optuna's plots set a global style, and warn about experimental features and small samples.
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")
        if len(study.trials) < 2:
            return {}
        pictures = {"parallel_coordinates": _png(plots.plot_parallel_coordinate(study, target_name=name).figure)}
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            axes = plots.plot_param_importances(study, evaluator=evaluator, target_name=name)
        except (RuntimeError, ValueError):  # too few trials, or no difference between them
            return pictures
        return pictures | {"importance": _png(axes.figure)}


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


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight")
    pyplot.close(figure)
    return file.getvalue()
