"""Metric accumulators: exact over a split, whatever the batch size and the number of workers."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from histill.metrics.alignment import linear_cka
from histill.metrics.overlap import count_confusion
from histill.metrics.weighted import compute_figures, overlap_metrics
from histill.models.resample import resize_logits
from histill.outputs import OutputSpec
from histill.stream.tile_batch import TileBatch


class SegmentationMetric:
    """Pixel-wise Dice and mIoU at the reference's size, and the foreground shares of prediction and reference."""

    def __init__(self, outputs: OutputSpec, reference: Callable[[TileBatch], Tensor]) -> None:
        """`reference` returns the target classes of a batch, int64 [B, H, W], among the scored ones of `outputs`."""
        classes = len(outputs.scored)
        self.state = torch.zeros(classes, classes, dtype=torch.int64)
        self._outputs, self._reference = outputs, reference

    def update(self, output: Tensor, batch: TileBatch) -> None:
        reference = self._reference(batch)
        decided = self._outputs.decide(resize_logits(output, reference.shape[-1]))
        valid = batch.valid
        self.state += count_confusion(decided[valid], reference[valid], len(self.state)).sum(0).cpu()

    def compute(self) -> dict[str, float]:
        counts = self.state.numpy()
        pixels = max(1, int(counts.sum()))
        foreground = {
            "foreground": float(counts[:, 1:].sum() / pixels),  # predicted
            "reference_foreground": float(counts[1:].sum() / pixels),
        }
        return _plain(overlap_metrics(counts[None], np.ones((1, 1)))) | foreground


class ClassificationMetric:
    """Tile classification metrics. Each tile has its own row of logits, so that summing over workers gathers them."""

    def __init__(
        self, outputs: OutputSpec, tiles: np.ndarray, reference: Callable[[TileBatch], Tensor] | None = None
    ) -> None:
        """`tiles` are the manifest rows (int64, ascending) of the split.

        `reference` returns the target classes of a batch, int64 [B], or multi-hot [B, K] if tiles have several labels;
        None: the tiles' labels.
        """
        self._outputs, self._reference = outputs, reference
        classes = len(outputs.classes)
        labels = classes if outputs.multi_label else 1
        self.state = torch.zeros(len(tiles), classes + labels + 1, dtype=torch.float64)  # logits, labels, 1 if seen
        self._tiles = torch.from_numpy(tiles)

    def update(self, output: Tensor, batch: TileBatch) -> None:
        found = batch.label if self._reference is None else self._reference(batch)
        assert found is not None
        valid = batch.valid.cpu()
        rows = torch.searchsorted(self._tiles, batch.index.cpu()[valid])
        label = found.cpu()[valid].double()
        label = label if self._outputs.multi_label else label[:, None]
        self.state[rows] += torch.cat([output.cpu()[valid].double(), label, torch.ones(len(label), 1).double()], 1)

    def compute(self) -> dict[str, float]:
        seen = self.state[self.state[:, -1] > 0]
        classes = len(self._outputs.classes)
        logits, labels = seen[:, :classes].numpy(), seen[:, classes:-1].long().numpy()
        labels = labels if self._outputs.multi_label else labels[:, 0]
        return _plain(compute_figures(self._outputs, logits, labels, np.ones((1, len(seen)))))


class EncoderMetric:
    """Linear CKA of an encoder's embeddings with each teacher's, and the mean over teachers, also of prefixes."""

    def __init__(
        self,
        width: int,
        teachers: Mapping[str, int],
        reference: Callable[[TileBatch], dict[str, Tensor]],
        prefixes: tuple[int, ...] = (),
    ):
        """`width` of the encoder and of each teacher; `reference` gives the teachers' embeddings of a batch."""
        self._width, self._teachers, self._reference, self._prefixes = width, dict(teachers), reference, prefixes
        wide = sum(self._teachers.values())
        sizes = [1, width + wide, width * width, *(each * each + each * width for each in self._teachers.values())]
        self.state = torch.zeros(sum(sizes), dtype=torch.float64)

    def update(self, output: Tensor, batch: TileBatch) -> None:
        valid = batch.valid.cpu()
        own = output.cpu()[valid].double()
        others = {name: each.cpu()[valid].double() for name, each in self._reference(batch).items()}
        parts = [own.new_tensor([len(own)]), own.sum(0), *(others[name].sum(0) for name in self._teachers)]
        parts.append(own.T @ own)
        for name in self._teachers:
            parts += [others[name].T @ others[name], others[name].T @ own]
        self.state += torch.cat([each.flatten() for each in parts])

    def compute(self) -> dict[str, float]:
        parts = iter(self._split())
        count, x = float(next(parts)[0]), next(parts)
        sums = {name: next(parts) for name in self._teachers}
        own = next(parts).reshape(self._width, self._width)
        products = {
            name: (next(parts).reshape(width, width), next(parts).reshape(width, self._width))
            for name, width in self._teachers.items()
        }

        def compare(name: str, length: int) -> float:
            others, cross = products[name]
            return linear_cka(
                max(count, 1), (x[:length], sums[name]), (own[:length, :length], others, cross[:, :length])
            )

        by_teacher = {f"cka_{name}": compare(name, self._width) for name in self._teachers}
        nested = {
            f"cka_{length}": float(np.mean([compare(name, length) for name in self._teachers]))
            for length in self._prefixes
        }
        return {"cka": float(np.mean(list(by_teacher.values()))), **by_teacher, **nested}

    def _split(self) -> list[np.ndarray]:
        widths = list(self._teachers.values())
        sizes = [1, self._width, *widths, self._width**2]
        sizes += [size for each in widths for size in (each * each, each * self._width)]
        return np.split(self.state.numpy(), np.cumsum(sizes)[:-1])


def _plain(figures: dict[str, np.ndarray]) -> dict[str, float]:
    """The values of the only weighting, as floats."""
    return {name: float(values[0]) for name, values in figures.items()}
