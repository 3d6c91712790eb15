"""Fit a linear probe: logistic regression on the standardized embeddings of a frozen encoder."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from histill.cluster.progress import track
from histill.evaluate.representation.embeddings import Embeddings, mean_by_class

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""Candidates for C, the inverse strength of the L2 penalty."""
_FOLDS = 5
_STEPS = 1000  # of L-BFGS
_ABSENT = -1e4  # logit of a class that the probe was not fitted to: probability 0
_SCALES = (-3.0, 12.0)  # bounds of the logarithm of the factor on the logits


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on standardized embeddings."""

    mean: np.ndarray  # float32 [D]
    std: np.ndarray  # float32 [D]
    weight: np.ndarray  # float32 [K, D]
    bias: np.ndarray  # float32 [K]
    classes: tuple[str, ...]  # names, [K]
    strength: float  # C
    scale: float = 1.0  # factor on the logits, the inverse of a temperature

    def logits(self, values: np.ndarray) -> np.ndarray:
        """Logits, float32 [N, K], for embeddings, float32 [N, D]."""
        logits: np.ndarray = (values - self.mean) / self.std @ self.weight.T + self.bias
        return logits * np.float32(self.scale)


def fit_probe(
    train: Embeddings, classes: tuple[str, ...], val: Embeddings | None = None, *, balanced: bool = True
) -> LinearProbe:
    """Fit a probe for `classes` (names by class index) to `train`, if `balanced` with equal weight per class.

    C is the candidate with the highest balanced accuracy on `val` or, without `val`, in cross-validation over the
    cases of `train`; the smallest of equal ones. A small C is as good for decisions as for nothing else: its
    probabilities are all alike. The logits are therefore scaled by the factor with the least log loss of the same
    predictions (temperature scaling: Guo et al., arXiv 1706.04599), which changes no decision. Raises ValueError if
    `train` has a single class.
    """
    if len(np.unique(train.labels)) < 2:
        raise ValueError("a probe needs tiles of two classes")
    parts = _fold_by_case(train) if val is None else [(train, val)]
    strength, scale = _choose(parts, classes, balanced)
    return replace(next(_fit(train, classes, balanced, strength)), scale=scale)


def _fold_by_case(train: Embeddings) -> list[tuple[Embeddings, Embeddings]]:
    """Pairs of embeddings to fit to and to predict; none for a single case."""
    from sklearn.model_selection import GroupKFold

    folds = min(_FOLDS, len(np.unique(train.cases)))
    if folds < 2:
        return []
    split = GroupKFold(folds).split(train.values, groups=train.cases)
    pairs = [(train.take(fitted), train.take(predicted)) for fitted, predicted in split]
    return [(fitted, predicted) for fitted, predicted in pairs if len(np.unique(fitted.labels)) > 1]


def _choose(
    parts: list[tuple[Embeddings, Embeddings]], classes: tuple[str, ...], balanced: bool
) -> tuple[float, float]:
    """C, and the factor on its logits."""
    if not parts:
        return 1.0, 1.0
    found: dict[float, list[np.ndarray]] = {strength: [] for strength in STRENGTHS}
    fits = ((predicted, probe) for fitted, predicted in parts for probe in _fit(fitted, classes, balanced, *STRENGTHS))
    for predicted, probe in track(fits, len(parts) * len(STRENGTHS), title="choosing C", unit="probes"):
        found[probe.strength].append(probe.logits(predicted.values))
    labels = np.concatenate([predicted.labels for _, predicted in parts])
    logits = {strength: np.concatenate(each) for strength, each in found.items()}
    scores = {
        strength: float(mean_by_class((each.argmax(1) == labels).astype(float), labels, np.ones((1, len(labels))))[0])
        for strength, each in logits.items()
    }
    best = max(scores, key=lambda strength: (round(scores[strength], 9), -strength))
    return best, _find_scale(logits[best], labels, balanced)


def _find_scale(logits: np.ndarray, labels: np.ndarray, balanced: bool) -> float:
    """The factor on `logits` [N, K] with the least log loss, if `balanced` with equal weight per class.

    Rows of a class that their probe was not fitted to are left out. Of N labels one more is taken to be any of the
    classes, so that the factor is finite where all decisions are right (as in Platt, 1999).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    known = logits[np.arange(len(labels)), labels] > _ABSENT / 2
    logits, labels = logits[known].astype(np.float64), labels[known]
    if not len(labels):
        return 1.0
    weights = 1 / np.bincount(labels)[labels] if balanced else np.ones(len(labels))
    possible = logits > _ABSENT / 2

    def loss(log_scale: float) -> float:
        found = log_softmax(np.exp(log_scale) * logits, axis=1)
        right = np.average(found[np.arange(len(labels)), labels], weights=weights)
        return -float(right + np.mean(found, where=possible) / len(labels))

    return float(np.exp(minimize_scalar(loss, bounds=_SCALES, method="bounded").x))


def _fit(train: Embeddings, classes: tuple[str, ...], balanced: bool, *strengths: float) -> Iterator[LinearProbe]:
    """Fit a probe for each of `strengths`, ascending, starting from the previous one."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train.values.astype(np.float64))
    scaled = scaler.transform(train.values.astype(np.float64))
    model = LogisticRegression(class_weight="balanced" if balanced else None, max_iter=_STEPS, warm_start=True)
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # decisions no longer change after so many steps
            model.set_params(C=strength).fit(scaled, train.labels)
        weight, bias = _by_class(model, len(classes))
        yield LinearProbe(
            mean=scaler.mean_.astype(np.float32),
            std=scaler.scale_.astype(np.float32),
            weight=weight.astype(np.float32),
            bias=bias.astype(np.float32),
            classes=classes,
            strength=strength,
        )


def _by_class(model: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight [K, D] and bias [K]. For two classes scikit-learn has one row, the second class's logit."""
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    whole = np.zeros((classes, weight.shape[1])), np.full(classes, _ABSENT)
    whole[0][model.classes_], whole[1][model.classes_] = weight, bias
    return whole
