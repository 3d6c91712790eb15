"""Fit a classifier's head by logistic regression on the features of its encoder, before or in place of gradient steps.

Training a fresh head and a pretrained encoder together distorts the encoder's features while the head is still random;
fitting the head first keeps them (linear probing, then fine-tuning: Kumar et al., arXiv 2202.10054). The features are
computed once.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from histill.errors import InputError
from histill.evaluate.representation.embeddings import Embeddings
from histill.evaluate.representation.linear_probe import fit_probe
from histill.models.classifiers import Classifier
from histill.models.encoders import embed
from histill.outputs import OutputSpec
from histill.stream.tile_stream import TileStream
from histill.train.coverage import share_first, sum_over_workers

MOST_TILES = 20_000
"""A larger training set is thinned out evenly: more tiles would change a probe little, and it would take minutes."""


def find_head(model: Classifier) -> nn.Linear:
    """The last layer of `model`. Raises InputError unless it is linear."""
    head = model.network.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"the last layer of {model.encoder_name} is not linear, so it cannot be fitted as a probe; set head=fresh, "
            "or choose another encoder.",
            code="option-not-applicable",
        )
    return head


@torch.no_grad()
def fit_head(model: Classifier, outputs: OutputSpec, training: TileStream, *, balanced: bool) -> None:
    """Replace the last layer of `model` by a logistic regression on the embeddings of the training tiles.

    Each worker embeds its part of the tiles, worker 0 fits, and all get its weights. `balanced` gives each class the
    same say whatever its number of tiles.
    """
    head, tiles = find_head(model), _embed_tiles(model, training)
    weight, bias = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
    if training.worker == 0:
        fitted = fit_linear(tiles, outputs, balanced=balanced)
        for target, values in zip((weight, bias), fitted, strict=True):
            target.copy_(torch.from_numpy(values))
    head.weight.copy_(share_first(weight, training.worker))
    head.bias.copy_(share_first(bias, training.worker))


def fit_linear(tiles: Embeddings, outputs: OutputSpec, *, balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weight, float64 [K, D], and bias, [K], of a linear layer that answers embeddings as the probe does.

    The probe standardizes the embeddings, which is folded into the layer. `tiles.labels` are int64 [N], or [N, K] of 0
    and 1 where tiles have several labels: then each class is a regression of its own.
    """
    if not outputs.multi_label:
        return _fold(tiles, outputs.classes, balanced)
    layers = [_fit_one(tiles, labels, balanced) for labels in tiles.labels.T]
    return np.stack([weight for weight, _ in layers]), np.array([bias for _, bias in layers])


def _fit_one(tiles: Embeddings, labels: np.ndarray, balanced: bool) -> tuple[np.ndarray, float]:
    """Weight [D] and bias of the logit of one class, `labels` 0 and 1; its log-odds where all tiles are alike."""
    there = int(labels.sum())
    if there in (0, len(labels)):
        return np.zeros(tiles.values.shape[1]), float(np.log((there + 0.5) / (len(labels) - there + 0.5)))
    weight, bias = _fold(replace(tiles, labels=labels), ("absent", "present"), balanced)
    return weight[1] - weight[0], float(bias[1] - bias[0])


def _fold(tiles: Embeddings, classes: tuple[str, ...], balanced: bool) -> tuple[np.ndarray, np.ndarray]:
    probe = fit_probe(tiles, classes, balanced=balanced)
    weight = probe.scale * probe.weight.astype(np.float64) / probe.std
    return weight, probe.scale * probe.bias - weight @ probe.mean


@torch.no_grad()
def _embed_tiles(model: Classifier, training: TileStream) -> Embeddings:
    """The embeddings of the training tiles that can be decoded, upright and whole, with labels and cases."""
    assert training.labels is not None
    every = -(-training.tiles // MOST_TILES)
    stream = replace(training, only=training.places.tiles[np.arange(0, training.tiles, every)])
    device, rows = next(model.parameters()).device, np.asarray(stream.places.tiles)
    values = torch.zeros(len(rows), find_head(model).in_features + 1)  # the last: whether it could be decoded
    model.eval()
    for batch in stream.exact_pass():
        embedded = embed(model, batch.student.to(device).float()).cpu()[batch.valid]
        places = torch.from_numpy(np.searchsorted(rows, batch.index[batch.valid].numpy()))
        values[places] = torch.cat([embedded, torch.ones(len(embedded), 1)], 1)
    values = sum_over_workers(values)
    seen = rows[(values[:, -1] > 0).numpy()]
    cases = training.manifest.column("case", seen)
    return Embeddings(values[values[:, -1] > 0, :-1].numpy(), training.labels[seen], cases)
