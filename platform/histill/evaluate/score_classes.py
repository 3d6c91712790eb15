"""One honest score of a classifier on held-out tiles."""

from dataclasses import dataclass

import torch

from histill.artifacts.model_folder import load, resolve
from histill.cluster.progress import Progress
from histill.config.common import Storage
from histill.config.scoring import HeldOut
from histill.evaluate.score import tiles_like
from histill.metrics.classification import Classification
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


@torch.inference_mode()
def score_classes(model: str, held_out: HeldOut, storage: Storage) -> ClassScore:
    """Score the classifier in the model folder or finished run `model` on every tile of `held_out`, each counted once.

    Raises InputError for tiles of another resolution, an empty split, and labels that are missing or no class of the
    model.
    """
    network, card, digest = load(resolve(model, storage), storage)
    manifest = tiles_like(card, held_out, storage)
    tiles = manifest.rows_of(held_out.split)
    stream = TileStream(
        manifest=manifest,
        source=Source(held_out.tiles, manifest.header.digest, storage),
        split=held_out.split,
        views=Views(card.size_px),
        labels=manifest.labels_among(card.classes, tiles),
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
    reference = torch.cat(labels)
    found, cost = Classification.of(torch.cat(logits), reference), measure_cost(network, card.size_px)
    return ClassScore(
        model_digest=digest,
        tiles=len(reference),
        corrupt=seen - len(reference),
        tiles_digest=manifest.header.digest,
        balanced_accuracy=found.balanced_accuracy,
        macro_f1=found.macro_f1,
        auroc=found.auroc,
        calibration_error=found.calibration_error,
        accuracy=found.accuracy,
        class_recall=dict(zip(card.classes, found.recall, strict=True)),
        confusion=found.confusion,
        parameters=cost.parameters,
        gmacs=cost.macs / 1e9,
        gmacs_with_attention=cost.macs_with_attention / 1e9,
        size_px=card.size_px,
    )
