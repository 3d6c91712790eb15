"""One honest score of a model on held-out tiles."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from histill.artifacts.model_folder import ModelCard, load, resolve
from histill.cluster.progress import Progress
from histill.config.common import Storage
from histill.config.scoring import HeldOut
from histill.distill.boundary import counted, decided
from histill.distill.masks import masks_among, tile_name
from histill.errors import InputError
from histill.metrics.overlap import Overlap, confusion
from histill.models.cost import measure_cost
from histill.models.resolution import logits_at_size
from histill.stream.batches import TileBatch
from histill.stream.read import Source
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.teachers.teacher import Teacher, load_teacher
from histill.tiles.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class Score:
    """A model's figures on one split of one tile set."""

    model_digest: str
    tiles: int  # counted: the split's tiles less `corrupt`
    corrupt: int
    reference: str  # "masks" or "teacher <first digits of its digest>"
    tiles_digest: str
    dice: float  # mean over the classes but the background, over the whole set; a boundary is no class here
    miou: float  # mean over all classes, over the whole set
    class_dice: dict[str, float]
    parameters: int
    gmacs: float  # convolutions and linear layers, one tile
    gmacs_with_attention: float
    size_px: int


@dataclass(frozen=True)
class Judged:
    """One batch with what was decided and what it is judged against, int64 [B, H, W] both, without a boundary."""

    batch: TileBatch
    decided: torch.Tensor
    reference: torch.Tensor


def score_model(model: str, held_out: HeldOut, storage: Storage) -> Score:
    """Score the model folder or finished run `model` on every tile of `held_out`, each counted once.

    Raises InputError for a model of other classes or another resolution than the tiles, an empty split, missing masks.
    """
    network, card, digest = load(resolve(model, storage), storage)
    manifest, teacher = checked_tiles(card, held_out, storage)
    classes = counted(card.classes)
    counts = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    seen = corrupt = 0
    expected = len(manifest.rows_of(held_out.split))
    progress = Progress(f"scoring {held_out.split}", expected, "tiles")
    for judged in judged_batches(network, card, manifest, teacher, held_out, storage):
        counts += confusion(judged.decided, judged.reference, judged.batch.valid, len(classes))
        present = judged.batch.index >= 0
        seen += int(present.sum())
        corrupt += int((present & ~judged.batch.valid).sum())
        progress.update(seen)
    progress.close()
    if seen != expected:
        raise RuntimeError(f"scoring saw {seen} tiles of {expected}")
    overlap, cost = Overlap.of(counts), measure_cost(network, card.size_px)
    return Score(
        model_digest=digest,
        tiles=seen - corrupt,
        corrupt=corrupt,
        reference=f"teacher {teacher.digest[:12]}" if teacher else "masks",
        tiles_digest=manifest.header.digest,
        dice=overlap.mean_dice,
        miou=overlap.mean_iou,
        class_dice=dict(zip(classes, overlap.dice, strict=True)),
        parameters=cost.parameters,
        gmacs=cost.macs / 1e9,
        gmacs_with_attention=cost.macs_with_attention / 1e9,
        size_px=card.size_px,
    )


@torch.inference_mode()
def judged_batches(
    network: torch.nn.Module,
    card: ModelCard,
    manifest: Manifest,
    teacher: Teacher | None,
    held_out: HeldOut,
    storage: Storage,
    *,
    pictured: bool = False,
) -> Iterator[Judged]:
    """The split's tiles in the manifest's order, with the model's decisions and the reference's.

    `pictured`: the batches bring the tiles at their own size, too, as the teacher's view.
    """
    stream = TileStream(
        manifest=manifest,
        source=Source(held_out.tiles, manifest.header.digest, storage, masks=teacher is None),
        split=held_out.split,
        views=Views(card.size_px, card.tile_px if teacher is not None or pictured else None),
        batch_size=held_out.batch_size,
        worker=0,
        workers=1,
        max_corrupt=held_out.max_corrupt,
    )
    for batch in stream.exact_pass():
        said = logits_at_size(network(batch.student.float()), card.tile_px)
        if teacher is not None:
            assert batch.teacher is not None
            reference = decided(teacher.respond(batch.teacher).cpu(), teacher.classes)
        else:
            reference = masks_among(batch, counted(card.classes), partial(tile_name, manifest))
        yield Judged(batch, decided(said, card.classes), reference)


def tiles_like(card: ModelCard, held_out: HeldOut, storage: Storage) -> Manifest:
    """The held-out tile set. Raises InputError when its tiles are not like those that the model was trained on."""
    manifest = read_manifest(held_out.tiles, storage)
    header = manifest.header
    if abs(card.tile_mpp / header.mpp - 1) > 0.05 or card.tile_px != header.tile_px:
        raise InputError(
            f"the model was trained on tiles of {card.tile_px} px at {card.tile_mpp:g} um/px and {held_out.tiles} has "
            f"{header.tile_px} px at {header.mpp:g}; cut the tiles like the training ones."
        )
    return manifest


def checked_tiles(card: ModelCard, held_out: HeldOut, storage: Storage) -> tuple[Manifest, Teacher | None]:
    manifest = tiles_like(card, held_out, storage)
    header = manifest.header
    if held_out.reference is None:
        rows = manifest.rows_of(held_out.split)
        without = int((~manifest.table["has_mask"].to_numpy(zero_copy_only=False)[rows]).sum())
        if without:
            raise InputError(
                f"{without} tiles of split {held_out.split!r} in {held_out.tiles} have no mask; ingest masks, or judge "
                "agreement with a teacher (held_out.reference.classical=true)."
            )
        return manifest, None
    teacher = load_teacher(held_out.reference, header.mpp, storage)
    if counted(teacher.classes) != counted(card.classes):
        raise InputError(
            f"the model decides among {', '.join(card.classes)} and the reference among {', '.join(teacher.classes)}; "
            "name a reference with the same classes."
        )
    return manifest, teacher
