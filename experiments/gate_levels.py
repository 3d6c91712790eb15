"""How often a model that is no better than the champion passes as "surely better", and how large a gain is detected.

    python -m experiments.gate_levels [--quick] [--repeats 1000] [--seed 0]

Pairs of models are drawn repeatedly, on n held-out cases of several kinds, and compared with methods that give a 95 %
interval of their paired difference: "surely better" means that its lower end is above 0, which an equal
model may reach in 2.5 % of the draws. Methods: the percentile bootstrap over cases, Student's t and BCa over the
cases' jackknife pseudo-values, and subsets of the cases, which promotion uses. Prints a table of levels,
one of power, and as its last line one JSON object.
"""

import argparse
import json
from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats
from tabulate import tabulate

from histill.evaluate.bootstrap import LEAST_CASES, bootstrap_metrics, paired_difference
from histill.evaluate.predictions import Predictions
from histill.outputs import OutputSpec

SIZES = (2, 3, 4, 5, 6, 8, 10, 20, 50)
POWER_SIZES, GAINS = (6, 10, 20), (0.02, 0.05, 0.1)
TILES = 20  # per case, unless sizes differ
DRAWS = 200
CLASSIFIED, SEGMENTED = (OutputSpec(kind, ("a", "b")) for kind in ("classification", "segmentation"))
ROUNDING = 1e-9
Pair = tuple[Predictions, Predictions, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="pairs of models drawn of each kind and size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="200 pairs, of 4, 10 and 20 cases, which takes a minute")
    arguments = parser.parse_args()
    repeats, sizes = (200, (4, 10, 20)) if arguments.quick else (arguments.repeats, SIZES)

    levels = [row for kind in KINDS for row in measured(kind, sizes, 0.0, repeats, arguments.seed)]
    print(tabulate(levels, headers="keys", floatfmt=".1%"), end="\n\n")
    sizes = tuple(size for size in sizes if size in POWER_SIZES)
    power = [
        {"gain": f"{gain:+.2f}"} | row
        for gain in GAINS
        for kind in ("even cases", "uneven sizes", "nuclei")
        for row in measured(kind, sizes, gain, repeats // 4, arguments.seed)
    ]
    print(tabulate(power, headers="keys", floatfmt=".1%"), end="\n\n")
    print(json.dumps({"repeats": repeats, "seed": arguments.seed, "levels": levels, "power": power}))


def measured(kind: str, sizes: tuple[int, ...], gain: float, repeats: int, seed: int) -> Iterator[dict[str, object]]:
    """The fraction of draws in which the first model is surely better, by method and figure."""
    figures, draw = KINDS[kind]
    for size in sizes:
        random = np.random.default_rng([seed, size, list(KINDS).index(kind)])
        won = {(figure, name): 0 for figure in figures for name in METHODS}
        for _ in range(repeats):
            one, other, cases = draw(random, size, gain)
            for figure in figures:
                values = pseudo_values(one, other, cases, figure)
                for name, method in METHODS.items():
                    won[figure, name] += bool(method(one, other, cases, figure, values) > ROUNDING)
        for figure in figures:
            shares = {name: won[figure, name] / repeats for name in METHODS}
            yield {"cases are": kind, "figure": figure.replace("_", " "), "n": size} | shares


def pseudo_values(one: Predictions, other: Predictions, cases: np.ndarray, figure: str) -> np.ndarray:
    """n D - (n - 1) D without the case, for each case (Tukey 1958); the input of all methods except ours."""
    count = cases.max() + 1
    weights = np.vstack([np.ones(count), 1 - np.eye(count)])[:, cases]
    found = one.figures(weights)[figure] - other.figures(weights)[figure]
    values: np.ndarray = count * found[0] - (count - 1) * found[1:]
    return values.round(9)


def percentile(one: Predictions, other: Predictions, cases: np.ndarray, figure: str, values: np.ndarray) -> float:
    """Lower end of the percentile bootstrap of the pooled difference."""
    drawn = [bootstrap_metrics(each, cases, DRAWS, seed=0)[figure] for each in (one, other)]
    return float(np.nanpercentile(drawn[0] - drawn[1], 2.5))


def student(one: Predictions, other: Predictions, cases: np.ndarray, figure: str, values: np.ndarray) -> float:
    """Lower end of Student's interval of the contributions' mean."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - stats.t.ppf(0.975, len(values) - 1) * error)


def bca(one: Predictions, other: Predictions, cases: np.ndarray, figure: str, values: np.ndarray) -> float:
    """Lower end of the bias-corrected and accelerated bootstrap of the contributions' mean (Efron 1987)."""
    count = len(values)
    means = values[np.random.default_rng(0).integers(0, count, (DRAWS, count))].mean(1)
    below = ((means < values.mean()).mean() + (means <= values.mean()).mean()) / 2
    spread = values.mean() - values
    scale = (spread**2).sum() ** 1.5
    if scale == 0 or not 0 < below < 1:
        return float(means.min())
    bias, skew = stats.norm.ppf(below), (spread**3).sum() / (6 * scale)
    reach = bias + stats.norm.ppf(0.025)
    return float(np.quantile(means, stats.norm.cdf(bias + reach / (1 - skew * reach))))


def subsets(one: Predictions, other: Predictions, cases: np.ndarray, figure: str, values: np.ndarray) -> float:
    """Lower end of the promotion's interval."""
    return paired_difference(one, other, cases, figure, DRAWS)[1][0]


METHODS: dict[str, Callable[..., float]] = {
    "percentile": percentile,
    "BCa": bca,
    "t": student,
    f"subsets, n >= {LEAST_CASES}": subsets,
}


def classifiers(random: np.random.Generator, sizes: np.ndarray, chances: list[np.ndarray]) -> Pair:
    """Two classifiers of two classes, each with its own accuracy in each case."""
    case = np.repeat(np.arange(len(sizes)), sizes)
    truth = np.arange(len(case)) % 2
    found = []
    for chance in chances:
        right = random.random(len(case)) < chance[case]
        sure = random.gamma(2, 1, len(case)).round(1)
        logit = np.where(right == (truth == 1), sure, -sure)
        said = np.stack([-logit, logit], 1).astype(np.float32)
        found.append(Predictions(CLASSIFIED, np.arange(len(case)), said, truth, np.zeros((len(case), 2)), 0))
    return found[0], found[1], case


def even(random: np.random.Generator, n: int, gain: float) -> Pair:
    chances = [random.normal(0.8 + more, 0.08, n).clip(0.5, 1) for more in (gain, 0)]
    return classifiers(random, np.full(n, TILES), chances)


def skewed(random: np.random.Generator, n: int, gain: float) -> Pair:
    """Most cases are easy, a few are hard, independently for each model."""
    chances = [np.clip(0.95 - random.exponential(0.12, n) + more, 0, 1) for more in (gain, 0)]
    return classifiers(random, np.full(n, TILES), chances)


def tied(random: np.random.Generator, n: int, gain: float) -> Pair:
    """In nine of ten cases the models agree on every tile."""
    one, other, case = even(random, n, gain)
    same = (random.random(n) < 0.9)[case]
    said = np.where(same[:, None], other.said, one.said)
    return Predictions(one.spec, one.rows, said, one.truth, one.stains, 0), other, case


def uneven(random: np.random.Generator, n: int, gain: float) -> Pair:
    """Cases of 4 to several hundred tiles."""
    sizes = np.clip(random.lognormal(3, 1.2, n).astype(int), 4, 600)
    chances = [random.normal(0.8 + more, 0.08, n).clip(0.5, 1) for more in (gain, 0)]
    return classifiers(random, sizes, chances)


def one_class(random: np.random.Generator, n: int, gain: float) -> Pair:
    """All tiles of a case are of one class, the rarer one in a third of the cases."""
    one, other, case = even(random, n, gain)
    classes = (np.arange(n) % 3 == 0).astype(int)[case]
    flip = classes != one.truth
    said = [np.where(flip[:, None], each.said[:, ::-1], each.said) for each in (one, other)]
    found = [Predictions(one.spec, one.rows, each, classes, one.stains, 0) for each in said]
    return found[0], found[1], case


def perfect(random: np.random.Generator, n: int, gain: float) -> Pair:
    """Nearly all tiles are right."""
    chances = [(1 - random.exponential(0.01, n) + more).clip(0, 1) for more in (gain, 0)]
    return classifiers(random, np.full(n, TILES), chances)


def bold(random: np.random.Generator, n: int, gain: float) -> Pair:
    """Equal on average, but different: the first is a little better in most cases and far worse in one of ten."""
    far = random.random(n) < 0.1
    chances = [np.where(far, 0.9 - 0.27, 0.9 + 0.03) + gain, np.full(n, 0.9)]
    return classifiers(random, np.full(n, TILES), [each.clip(0, 1) for each in chances])


def nuclei(random: np.random.Generator, n: int, gain: float) -> Pair:
    """Two segmenters: nuclei pixels per tile vary by case, and so do each model's false negatives and positives."""
    case = np.repeat(np.arange(n), TILES)
    there = (random.beta(1.5, 6, n)[case] * 4096 * random.uniform(0.3, 1.7, len(case))).clip(1, 4000).astype(int)
    found = []
    for more in (gain, 0):
        missed = random.binomial(there, (random.beta(3, 12, n) - more).clip(0, 1)[case])
        made = random.binomial(4096 - there, random.beta(2, 60, n)[case])
        said = np.stack([4096 - there - made, made, missed, there - missed], 1).reshape(-1, 2, 2)
        truth, stains = np.zeros(len(case), np.int64), np.zeros((len(case), 2))
        found.append(Predictions(SEGMENTED, np.arange(len(case)), said, truth, stains, 0))
    return found[0], found[1], case


BOTH = ("balanced_accuracy", "auroc")
KINDS: dict[str, tuple[tuple[str, ...], Callable[..., Pair]]] = {
    "even cases": (BOTH, even),
    "skewed": (BOTH, skewed),
    "nine of ten alike": (BOTH, tied),
    "uneven sizes": (BOTH, uneven),
    "one class a case": (BOTH, one_class),
    "near 1": (BOTH, perfect),
    "nuclei": (("dice",), nuclei),
    "equal, not alike": (("balanced_accuracy",), bold),
}


if __name__ == "__main__":
    main()
