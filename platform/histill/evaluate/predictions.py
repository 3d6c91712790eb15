"""A model's predictions for each tile of a split, from which every figure and subgroup is computed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histill.metrics.weighted import Figures, compute_figures
from histill.outputs import OutputSpec


@dataclass(frozen=True)
class Predictions:
    """Of N tiles that could be decoded, in the order of the manifest."""

    spec: OutputSpec  # of the model
    rows: np.ndarray  # int64 [N], of the manifest
    said: np.ndarray  # float32 [N, K] logits; of a segmenter int64 [N, K, K] pixels, reference by decided class
    truth: np.ndarray  # int64 [N] classes, [N, K] of 0 and 1 for several labels, [N] of 0 where `said` counts already
    stains: np.ndarray  # float32 [N, 2], mean density of hematoxylin and eosin
    corrupt: int  # tiles that could not be decoded

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """The answers of several parts of a split, in any order; there is one at least."""
        order = np.argsort(np.concatenate([part.rows for part in parts]))

        def column(name: str) -> np.ndarray:
            whole: np.ndarray = np.concatenate([getattr(part, name) for part in parts])[order]
            return whole

        columns = {name: column(name) for name in ("rows", "said", "truth", "stains")}
        return cls(spec=parts[0].spec, corrupt=sum(part.corrupt for part in parts), **columns)

    def figures(self, weights: np.ndarray | None = None) -> Figures:
        """Each figure under weights, float64 [D, N], as [D]; None: that of all tiles, as [1]."""
        if weights is None:
            weights = np.ones((1, len(self.rows)))
        return compute_figures(self.spec, self.said, self.truth, weights)

    def decide(self) -> np.ndarray:
        """A classifier's decisions, int64 [N], or [N, K] of 0 and 1 for several labels."""
        import torch

        return self.spec.decide(torch.from_numpy(self.said)).numpy()

    def probabilities(self) -> np.ndarray:
        """A classifier's, float64 [N, K]."""
        import torch

        return self.spec.probabilities(torch.from_numpy(self.said).double()).numpy()

    def per_tile(self) -> np.ndarray:
        """How well each tile is answered, float64 [N] in 0..1, to find the worst.

        A segmenter's Dice of the foreground, or 1 where there is none and none was found; a classifier's probability
        of the class; with several labels, the least probability of a class being as it is.
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
