"""How often a scanner that is worse is found, and how often one is blamed that is not.

    python -m experiments.group_levels [--seeds 100] [--samples 300]

Simulated classifiers of two classes on cases of 12 tiles. A case is decided rightly with a probability of its own,
normal about 0.8 with a standard deviation of 0.08; four scanners have as many cases each, and those of the first one
have that probability lowered by a known loss. Found is a group that `held_out.by` shows surely below the others (margin
0). Prints a line for each number of cases and loss, and as its last line all of them as JSON.
"""

import argparse
import json

import numpy as np

from histill.evaluate.groups import find_surely_worse, score_groups
from histill.evaluate.predictions import Predictions
from histill.outputs import OutputSpec

SCANNERS, TILES = 4, 12
CASES, LOSSES = (24, 80, 160), (0.0, 0.05, 0.1, 0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--samples", type=int, default=300, help="resamples of the cases")
    chosen = parser.parse_args()
    rows = []
    for cases in CASES:
        for loss in LOSSES:
            found = [find_worse(seed, loss, cases, chosen.samples) for seed in range(chosen.seeds)]
            right, wrong = sum("0" in each for each in found), sum(bool(each - {"0"}) for each in found)
            rows.append({"cases": cases, "loss": loss, "seeds": chosen.seeds, "first": right, "other": wrong})
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(rows))


def find_worse(seed: int, loss: float, cases: int, samples: int) -> set[str]:
    """The scanners that seem surely worse."""
    case = np.repeat(np.arange(cases), TILES)
    scanner = case % SCANNERS
    return set(find_surely_worse(score_groups(simulate(seed, loss, case), case, scanner.astype(str), samples), 0.0))


def simulate(seed: int, loss: float, case: np.ndarray) -> Predictions:
    """A classifier's answers for tiles of these cases."""
    random = np.random.default_rng(seed)
    skill = np.clip(random.normal(0.8, 0.08, case.max() + 1), 0, 1) - loss * (np.arange(case.max() + 1) % SCANNERS == 0)
    truth = random.integers(0, 2, len(case))
    right = random.random(len(case)) < skill[case]
    said = np.eye(2, dtype=np.float32)[np.where(right, truth, 1 - truth)]
    kind = OutputSpec("classification", ("benign", "tumor"))
    return Predictions(kind, np.arange(len(case)), said, truth, np.zeros((len(case), 2), np.float32), 0)


if __name__ == "__main__":
    main()
