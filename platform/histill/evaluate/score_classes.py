"""One honest score of a classifier on held-out tiles."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from histill.artifacts.model_folder import load, resolve
from histill.cluster.progress import Progress
from histill.config.common import Storage
from histill.config.scoring import HeldOut
from histill.evaluate.score import tiles_like
from histill.metrics.classification import Classification
from histill.metrics.multi_label import MultiLabel
from histill.models.cost import measure_cost
from histill.stream.read import Source
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views


@dataclass(frozen=True)
class ClassScore:
    """A classifier's figures on one split of one tile set; see `Classification` for what they mean."""

    model_digest: str
    tiles: int  # counted: the split's tiles less `corrupt`
    corrupt: int
    tiles_digest: str
    balanced_accuracy: float
    macro_f1: float
    auroc: float
    calibration_error: float
    accuracy: float
    class_recall: dict[str, float]
    confusion: tuple[tuple[int, ...], ...]  # reference class by decided class, in the order of `class_recall`
    parameters: int
    gmacs: float  # convolutions and linear layers, one tile
    gmacs_with_attention: float
    size_px: int


@dataclass(frozen=True)
class MultiLabelScore:
    """The figures of a classifier whose classes do not exclude each other; see `MultiLabel` for what they mean."""

    model_digest: str
    tiles: int  # counted: the split's tiles less `corrupt`
    corrupt: int
    tiles_digest: str
    balanced_accuracy: float
    macro_f1: float
    auroc: float
    calibration_error: float
    class_recall: dict[str, float]
    class_specificity: dict[str, float]
    parameters: int
    gmacs: float  # convolutions and linear layers, one tile
    gmacs_with_attention: float
    size_px: int


@torch.inference_mode()
def score_classes(model: str, held_out: HeldOut, storage: Storage) -> ClassScore | MultiLabelScore:
    """Score the classifier in the model folder or finished run `model` on every tile of `held_out`, each counted once.

    Raises InputError for tiles of another resolution, an empty split, and labels that are missing or no class of the
    model.
    """
    network, card, digest = load(resolve(model, storage), storage)
    manifest = tiles_like(card, held_out, storage)
    tiles = manifest.rows_of(held_out.split)
    among = manifest.multi_labels_among if card.multi_label else manifest.labels_among
    stream = TileStream(
        manifest=manifest,
        source=Source(held_out.tiles, manifest.header.digest, storage),
        split=held_out.split,
        views=Views(card.size_px),
        labels=among(card.classes, tiles),
        batch_size=held_out.batch_size,
        worker=0,
        workers=1,
        max_corrupt=held_out.max_corrupt,
    )
    progress = Progress(f"scoring {held_out.split}", len(tiles), "tiles")
    logits, labels, seen = [], [], 0
    for batch in stream.exact_pass():
        assert batch.label is not None
        logits.append(network(batch.student.float())[batch.valid])
        labels.append(batch.label[batch.valid])
        seen += int((batch.index >= 0).sum())
        progress.update(seen)
    progress.close()
    if seen != len(tiles):
        raise RuntimeError(f"scoring saw {seen} tiles of {len(tiles)}")
    answers, reference, cost = torch.cat(logits), torch.cat(labels), measure_cost(network, card.size_px)
    shared: dict[str, Any] = {
        "model_digest": digest,
        "tiles": len(reference),
        "corrupt": seen - len(reference),
        "tiles_digest": manifest.header.digest,
        "parameters": cost.parameters,
        "gmacs": cost.macs / 1e9,
        "gmacs_with_attention": cost.macs_with_attention / 1e9,
        "size_px": card.size_px,
    }
    found = (MultiLabel if card.multi_label else Classification).of(answers, reference)
    figures = asdict(found)
    for name in ("recall", "specificity"):
        if name in figures:
            shared[f"class_{name}"] = dict(zip(card.classes, figures.pop(name), strict=True))
    return (MultiLabelScore if card.multi_label else ClassScore)(**figures, **shared)
