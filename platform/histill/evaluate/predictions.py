"""A model's predictions for the tiles of a split, from which all figures are computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histill.metrics.objects import object_metrics
from histill.metrics.weighted import Figures, compute_figures
from histill.outputs import OutputSpec


@dataclass(frozen=True)
class Predictions:
    """Predictions for the N decodable tiles, in manifest order."""

    spec: OutputSpec  # the model's
    rows: np.ndarray  # int64 [N], manifest rows
    said: np.ndarray  # classifier: float32 [N, K] logits; segmenter: int64 [N, K, K] pixels, reference by decided class
    truth: np.ndarray  # int64 [N] classes; [N, K] of 0 and 1 for multiple labels; [N] of 0 for a segmenter (unused)
    stains: np.ndarray  # float32 [N, 2], mean density of hematoxylin and eosin
    corrupt: int  # tiles that could not be decoded
    objects: np.ndarray | None = None  # float64 [N, K - 1, 6], `metrics.objects.COUNTS` of a segmenter, where asked for

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Concatenate the predictions of one or more parts of a split, given in any order."""
        order = np.argsort(np.concatenate([part.rows for part in parts]))

        def column(name: str) -> np.ndarray:
            whole: np.ndarray = np.concatenate([getattr(part, name) for part in parts])[order]
            return whole

        names = ("rows", "said", "truth", "stains", *(["objects"] if parts[0].objects is not None else []))
        columns = {name: column(name) for name in names}
        return cls(spec=parts[0].spec, corrupt=sum(part.corrupt for part in parts), **columns)

    def figures(self, weights: np.ndarray | None = None) -> Figures:
        """Each figure, [D], under tile weights, float64 [D, N]; None weights all tiles equally and gives [1]."""
        if weights is None:
            weights = np.ones((1, len(self.rows)))
        figures = compute_figures(self.spec, self.said, self.truth, weights)
        return figures if self.objects is None else figures | object_metrics(self.objects, weights)

    def decide(self) -> np.ndarray:
        """A classifier's decisions, int64 [N], or [N, K] of 0 and 1 for multiple labels."""
        import torch

        return self.spec.decide(torch.from_numpy(self.said)).numpy()

    def probabilities(self) -> np.ndarray:
        """A classifier's class probabilities, float64 [N, K]."""
        import torch

        return self.spec.probabilities(torch.from_numpy(self.said).double()).numpy()

    def per_tile(self) -> np.ndarray:
        """A quality score for each tile, float64 [N] in 0..1, for finding the worst.

        For a segmenter the foreground Dice, 1 if reference and decision have none; for a classifier the probability of
        the true class; with multiple labels the lowest probability of a class's true state.
        """
        if self.spec.dense:
            wrong = self.said.sum((1, 2)) - np.trace(self.said, axis1=1, axis2=2)
            hit = np.trace(self.said[:, 1:, 1:], axis1=1, axis2=2)
            return np.where(hit + wrong > 0, 2 * hit / np.maximum(2 * hit + wrong, 1), 1.0)
        if self.spec.multi_label:
            from scipy.special import expit

            least: np.ndarray = expit(np.where(self.truth > 0, self.said, -self.said)).min(1)
            return least
        return self.probabilities()[np.arange(len(self.rows)), self.truth]
