"""How often the 95 % interval of one model's figure covers the figure of all cases, by bootstrap method.

    python -m experiments.interval_coverage [--repeats 300] [--seed 0]

Models are drawn repeatedly on n held-out cases. Methods: the percentile bootstrap, BCa (`scipy.stats.bootstrap`),
and both with their level expanded to that of Student's t (Hesterberg, arXiv 1411.5279); `score_model` uses the expanded
percentiles. Prints a table, and as its last line one JSON object.
"""

import argparse
import json
import math
import warnings
from collections.abc import Iterator

import numpy as np
from scipy import stats
from tabulate import tabulate

from experiments.gate_levels import KINDS
from histill.evaluate.predictions import Predictions

SIZES, FIGURES = (6, 10, 20, 70), ("balanced_accuracy", "auroc", "calibration_error")
SHAPES = ("even cases", "skewed", "uneven sizes")
SAMPLES, ALL = 500, 5000  # resamples; number of cases that approximates all cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=300, help="models drawn of each kind of cases and size")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = [row for shape in SHAPES for row in covered(shape, arguments.repeats, arguments.seed)]
    print(tabulate(rows, headers="keys", floatfmt=".1%"), end="\n\n")
    print(json.dumps({"repeats": arguments.repeats, "seed": arguments.seed, "coverage": rows}))


def covered(shape: str, repeats: int, seed: int) -> Iterator[dict[str, object]]:
    """The fraction of draws whose interval covers the figure, by method, size and figure."""
    draw = KINDS[shape][1]
    truth = draw(np.random.default_rng([seed, ALL]), ALL, 0.0)[0].figures()
    for size in SIZES:
        random = np.random.default_rng([seed, size, SHAPES.index(shape)])
        held = {
            figure: dict.fromkeys(("percentile", "BCa", "expanded percentile", "expanded BCa"), 0.0)
            for figure in FIGURES
        }
        for _ in range(repeats):
            model, _, cases = draw(random, size, 0.0)
            for name, (low, high) in intervals(model, cases).items():
                for place, figure in enumerate(FIGURES):
                    held[figure][name] += bool(low[place] <= truth[figure][0] <= high[place]) / repeats
        for figure in FIGURES:
            yield {"cases are": shape, "figure": figure.replace("_", " "), "n": size} | held[figure]


def intervals(model: Predictions, cases: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Lower and upper ends of every figure, by method, all from the same resamples."""
    count = int(cases.max()) + 1
    expanded = 1 - 2 * stats.norm.cdf(math.sqrt(count / (count - 1)) * stats.t.ppf(0.025, count - 1))

    def statistic(sample: np.ndarray, axis: int = -1) -> np.ndarray:
        chosen = (sample.reshape(-1, sample.shape[-1])[:, :, None] == np.arange(count)).sum(1)
        found = model.figures(chosen[:, cases].astype(np.float64))
        return np.stack([found[figure] for figure in FIGURES]).reshape(len(FIGURES), *sample.shape[:-1])

    found, drawn = {}, None
    for prefix, level in (("", 0.95), ("expanded ", expanded)):
        for method in ("percentile", "BCa"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", stats.DegenerateDataWarning)
                drawn = stats.bootstrap(
                    (np.arange(count),),
                    statistic,
                    n_resamples=SAMPLES if drawn is None else 0,
                    vectorized=True,
                    axis=-1,
                    confidence_level=level,
                    method=method,
                    bootstrap_result=drawn,
                    rng=np.random.default_rng(0),
                )
            found[prefix + method] = drawn.confidence_interval
    return found


if __name__ == "__main__":
    main()
