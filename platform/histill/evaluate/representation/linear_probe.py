"""The linear probe: logistic regression on standardized embeddings of a frozen encoder."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from histill.evaluate.representation.embeddings import Embeddings, mean_by_class

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""Values of C, the inverse strength of the L2 penalty, among which one is chosen."""
_FOLDS = 5
_STEPS = 1000  # of L-BFGS
_ABSENT = -1e4  # the logit of a class that the probe has not seen: a probability of 0


@dataclass(frozen=True)
class LinearProbe:
    """Weights of a linear classifier on standardized embeddings."""

    mean: np.ndarray  # float32 [D]
    std: np.ndarray  # float32 [D]
    weight: np.ndarray  # float32 [K, D]
    bias: np.ndarray  # float32 [K]
    classes: tuple[str, ...]  # names, [K]
    strength: float  # C

    def logits(self, values: np.ndarray) -> np.ndarray:
        """float32 [N, K] for embeddings, float32 [N, D]."""
        logits: np.ndarray = (values - self.mean) / self.std @ self.weight.T + self.bias
        return logits


def fit_probe(
    train: Embeddings, classes: tuple[str, ...], val: Embeddings | None = None, *, balanced: bool = True
) -> LinearProbe:
    """Fit a probe for the `classes`, names by index, to `train`; `balanced`: each with the same say whatever its tiles.

    C is the one of `STRENGTHS` with the highest balanced accuracy on `val`; without `val` on the cases of `train`, each
    answered by a probe that was fitted without it (five folds of cases). Of equal ones the least is taken. The probe
    itself always learns from all of `train` and nothing else. Raises ValueError when `train` has one class alone.
    """
    if len(np.unique(train.labels)) < 2:
        raise ValueError("a probe needs tiles of two classes")
    parts = _fold_by_case(train) if val is None else [(train, val)]
    return _fit(train, classes, balanced, _choose_strength(parts, classes, balanced))[0]


def _fold_by_case(train: Embeddings) -> list[tuple[Embeddings, Embeddings]]:
    """Pairs of what is fitted to and what is answered; none where there is a single case."""
    from sklearn.model_selection import GroupKFold

    folds = min(_FOLDS, len(np.unique(train.cases)))
    if folds < 2:
        return []
    split = GroupKFold(folds).split(train.values, groups=train.cases)
    pairs = [(train.take(fitted), train.take(answered)) for fitted, answered in split]
    return [(fitted, answered) for fitted, answered in pairs if len(np.unique(fitted.labels)) > 1]


def _choose_strength(parts: list[tuple[Embeddings, Embeddings]], classes: tuple[str, ...], balanced: bool) -> float:
    if not parts:
        return 1.0
    right: dict[float, list[np.ndarray]] = {strength: [] for strength in STRENGTHS}
    for fitted, answered in parts:
        for probe in _fit(fitted, classes, balanced, *STRENGTHS):
            right[probe.strength].append(probe.logits(answered.values).argmax(1) == answered.labels)
    labels = np.concatenate([answered.labels for _, answered in parts])
    everyone = np.ones((1, len(labels)))
    scores = {
        strength: float(mean_by_class(np.concatenate(each).astype(float), labels, everyone)[0])
        for strength, each in right.items()
    }
    return max(scores, key=lambda strength: (round(scores[strength], 9), -strength))


def _fit(train: Embeddings, classes: tuple[str, ...], balanced: bool, *strengths: float) -> list[LinearProbe]:
    """A probe for each of `strengths`, ascending; each begins where the one before it has ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.values.astype(np.float64))
    scaled = scaler.transform(train.values.astype(np.float64))
    model = LogisticRegression(class_weight="balanced" if balanced else None, max_iter=_STEPS, warm_start=True)
    probes = []
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # after so many steps the decisions no longer change
            model.set_params(C=strength).fit(scaled, train.labels)
        weight, bias = _by_class(model, len(classes))
        probes.append(
            LinearProbe(
                mean=scaler.mean_.astype(np.float32),
                std=scaler.scale_.astype(np.float32),
                weight=weight.astype(np.float32),
                bias=bias.astype(np.float32),
                classes=classes,
                strength=strength,
            )
        )
    return probes


def _by_class(model: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight [K, D] and bias [K]; two classes share one row in scikit-learn, the logit of the second."""
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    whole = np.zeros((classes, weight.shape[1])), np.full(classes, _ABSENT)
    whole[0][model.classes_], whole[1][model.classes_] = weight, bias
    return whole
