"""Fit a linear probe: logistic regression on the standardized embeddings of a frozen encoder."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from histill.cluster.progress import track
from histill.evaluate.representation.embeddings import Embeddings, mean_by_class

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""Candidates for C, the inverse strength of the L2 penalty."""
_FOLDS = 5
_STEPS = 1000  # of L-BFGS
_ABSENT = -1e4  # logit of a class that the probe was not fitted to: probability 0


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on standardized embeddings."""

    mean: np.ndarray  # float32 [D]
    std: np.ndarray  # float32 [D]
    weight: np.ndarray  # float32 [K, D]
    bias: np.ndarray  # float32 [K]
    classes: tuple[str, ...]  # names, [K]
    strength: float  # C

    def logits(self, values: np.ndarray) -> np.ndarray:
        """Logits, float32 [N, K], for embeddings, float32 [N, D]."""
        logits: np.ndarray = (values - self.mean) / self.std @ self.weight.T + self.bias
        return logits


def fit_probe(
    train: Embeddings, classes: tuple[str, ...], val: Embeddings | None = None, *, balanced: bool = True
) -> LinearProbe:
    """Fit a probe for `classes` (names by class index) to `train`, if `balanced` with equal weight per class.

    C is the candidate with the highest balanced accuracy on `val` or, without `val`, in cross-validation over the
    cases of `train`; the smallest of equal ones. Raises ValueError if `train` has a single class.
    """
    if len(np.unique(train.labels)) < 2:
        raise ValueError("a probe needs tiles of two classes")
    parts = _fold_by_case(train) if val is None else [(train, val)]
    return next(_fit(train, classes, balanced, _choose_strength(parts, classes, balanced)))


def _fold_by_case(train: Embeddings) -> list[tuple[Embeddings, Embeddings]]:
    """Pairs of embeddings to fit to and to predict; none for a single case."""
    from sklearn.model_selection import GroupKFold

    folds = min(_FOLDS, len(np.unique(train.cases)))
    if folds < 2:
        return []
    split = GroupKFold(folds).split(train.values, groups=train.cases)
    pairs = [(train.take(fitted), train.take(predicted)) for fitted, predicted in split]
    return [(fitted, predicted) for fitted, predicted in pairs if len(np.unique(fitted.labels)) > 1]


def _choose_strength(parts: list[tuple[Embeddings, Embeddings]], classes: tuple[str, ...], balanced: bool) -> float:
    if not parts:
        return 1.0
    right: dict[float, list[np.ndarray]] = {strength: [] for strength in STRENGTHS}
    fits = ((predicted, probe) for fitted, predicted in parts for probe in _fit(fitted, classes, balanced, *STRENGTHS))
    for predicted, probe in track(fits, len(parts) * len(STRENGTHS), title="choosing C", unit="probes"):
        right[probe.strength].append(probe.logits(predicted.values).argmax(1) == predicted.labels)
    labels = np.concatenate([predicted.labels for _, predicted in parts])
    scores = {
        strength: float(mean_by_class(np.concatenate(each).astype(float), labels, np.ones((1, len(labels))))[0])
        for strength, each in right.items()
    }
    return max(scores, key=lambda strength: (round(scores[strength], 9), -strength))


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
