"""Evaluate a model on held-out tiles against labels, masks or a teacher."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from histill.artifacts.model_folder import ModelCard, check_like, load, resolve
from histill.cluster.connect import connect_cluster
from histill.cluster.metrics import Job, name_job
from histill.cluster.parallel import map_tasks
from histill.cluster.sharded import run_sharded
from histill.config.common import Storage, Workers
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.evaluate.predictions import Predictions
from histill.evaluate.representation.judge import Judgement
from histill.evaluate.representation.linear_probe import LinearProbe
from histill.metrics.overlap import count_confusion
from histill.models.encoders import embed
from histill.models.resample import resize_logits
from histill.models.transfer import Model
from histill.outputs import OutputSpec
from histill.stream.color import stain_densities
from histill.stream.index import SampleIndex
from histill.stream.read import TileSource
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.masks import read_masks, tile_name
from histill.teachers.teacher import Teacher, load_teacher
from histill.tiles.labels import TileLabels
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest

PARTS_PER_WORKER = 4  # tasks per worker: more balance the load better, fewer load the model less often


@dataclass(frozen=True)
class Evaluator:
    """A model, the held-out tiles, and the reference that it is scored against."""

    network: Model
    card: ModelCard
    digest: str
    manifest: Manifest
    held_out: HeldOut
    storage: Storage
    teacher: Teacher | None  # None: labels or masks
    device: torch.device
    probe: LinearProbe | None = None  # of the model's embeddings; its logits then replace the model's

    @classmethod
    def load(cls, model: str, held_out: HeldOut, storage: Storage, *, gpu: bool | None = None) -> "Evaluator":
        """Load a model folder or finished run; onto a GPU if there is one, unless `gpu` says otherwise.

        Raises InputError if the model's classes or resolution do not match the tiles, the split is empty, masks are
        missing, or labels are missing or not among the model's classes.
        """
        network, card, digest = load(resolve(model, storage), storage)
        manifest = read_manifest(held_out.tiles, storage)
        check_like(card, manifest.header, held_out.tiles)
        teacher = None
        if card.outputs.dense:
            teacher = _reference(card.outputs, manifest, held_out, storage)
        elif held_out.reference is not None:
            raise InputError(
                "held_out.reference is for models that mark pixels, and a classifier is scored against labels; leave "
                "it out.",
                code="option-not-applicable",
            )
        device = torch.device("cuda" if (torch.cuda.is_available() if gpu is None else gpu) else "cpu")
        found = cls(network.to(device), card, digest, manifest, held_out, storage, teacher, device)
        found.labels  # noqa: B018 - raises for missing or unknown labels
        return found

    @property
    def outputs(self) -> OutputSpec:
        """The output specification of the model, or of the probe."""
        return self.card.outputs if self.probe is None else OutputSpec("classification", self.probe.classes)

    @property
    def rows(self) -> np.ndarray:
        """The split's tiles: ascending manifest rows, int64."""
        return self.manifest.rows_of(self.held_out.split)

    @property
    def labels(self) -> TileLabels | None:
        """A classifier's labels in the stream's format; None for a segmenter."""
        return None if self.outputs.dense else self.manifest.labels_of(self.outputs, self.rows)

    def batches(self, rows: np.ndarray, *, whole: bool = False) -> Iterator[TileBatch]:
        """Stream the tiles at manifest `rows`, each once; with `whole` also at full size, as the teacher's view."""
        teacher_px = self.card.tile_px if self.teacher is not None or whole else None
        stream = TileStream(
            manifest=self.manifest,
            source=TileSource(
                self.held_out.tiles,
                self.manifest.header.digest,
                self.storage,
                masks=self.outputs.dense and self.teacher is None,
            ),
            split=self.held_out.split,
            only=rows,
            views=Views(self.card.size_px, teacher_px),
            labels=self.labels,
            batch_size=self.held_out.batch_size,
            worker=0,
            workers=1,
            max_corrupt=self.held_out.max_corrupt,
        )
        return stream.exact_pass()

    @torch.inference_mode()
    def logits(self, seen: Tensor) -> Tensor:
        """float32 [B, K], or [B, K, H, W] at the tiles' own size, for uint8 [B, 3, s, s] at the model's input size."""
        tiles = seen.to(self.device).float()
        if self.probe is not None:
            return torch.from_numpy(self.probe.logits(embed(self.network, tiles).cpu().numpy()))
        said = self.network(tiles).float().cpu()
        return resize_logits(said, self.card.tile_px) if self.outputs.dense else said

    def reference(self, batch: TileBatch) -> Tensor:
        """A segmenter's reference, int64 [B, H, W] among the scored classes."""
        if self.teacher is None:
            return read_masks(batch, self.outputs.scored, partial(tile_name, self.manifest))
        assert batch.teacher is not None
        return self.teacher.outputs.decide(self.teacher.respond(batch.teacher).cpu())

    def answers(self, batch: TileBatch, seen: Tensor | None = None) -> Predictions:
        """Predict the tiles of a batch, or `seen` in their place."""
        valid = batch.valid
        logits = self.logits(batch.student if seen is None else seen)[valid]
        if self.outputs.dense:
            decisions = self.outputs.decide(logits)
            said = count_confusion(decisions, self.reference(batch)[valid], len(self.outputs.scored)).numpy()
            truth = np.zeros(len(said), np.int64)
        else:
            assert batch.label is not None
            said, truth = logits.numpy(), batch.label[valid].numpy()
        present = batch.index >= 0
        return Predictions(
            spec=self.outputs,
            rows=batch.index[valid].numpy(),
            said=said,
            truth=truth,
            stains=stain_densities(batch.student[valid].numpy()),
            corrupt=int((present & ~valid).sum()),
        )


@dataclass(frozen=True)
class Examined:
    """A model, or the probe of its encoder, with its predictions for the whole split."""

    examiner: Evaluator
    answers: Predictions
    judgement: Judgement | None = None  # of an encoder: what its embeddings tell without the probe
    probe: dict[str, float | str] = field(default_factory=dict)  # of an encoder: facts about the probe


def predict_split(examiner: Evaluator, model: str, workers: Workers | None) -> Predictions:
    """Predict the whole split with `examiner`'s model, counting every tile once; `model` is the model's URI.

    Runs in this process or, with `workers`, as tasks on the connected cluster, which read `model` themselves.
    """
    rows, title = examiner.rows, f"scoring {examiner.held_out.split}"
    collect = partial(
        run_sharded, expected=len(rows), title=title, unit="tiles", count=lambda part: len(part.rows) + part.corrupt
    )
    if workers is None or workers.in_process:
        parts = collect(map(examiner.answers, examiner.batches(rows)))
    else:
        work = partial(_part, model, examiner.held_out, examiner.storage, workers.gpus > 0)
        pieces = split_by_row_group(examiner.manifest, rows, PARTS_PER_WORKER * workers.count)
        with connect_cluster(), name_job(Job("score_model", model)):
            parts = collect(map_tasks(work, pieces, cpus=workers.cpus, gpus=workers.gpus))
    answers = Predictions.joined(parts)
    if len(np.unique(answers.rows)) != len(answers.rows):
        raise RuntimeError(f"scoring saw some of {len(rows)} tiles twice")
    check_corrupt(answers.corrupt, examiner.held_out)
    return answers


def check_corrupt(corrupt: int, held_out: HeldOut) -> None:
    """Raise InputError for more undecodable tiles than allowed."""
    if corrupt > held_out.max_corrupt:
        raise InputError(
            f"{corrupt} tiles of split {held_out.split!r} in {held_out.tiles} cannot be decoded and "
            f"held_out.max_corrupt allows {held_out.max_corrupt}; ingest them again, or allow more.",
            code="tiles-undecodable",
        )


def split_by_row_group(manifest: Manifest, rows: np.ndarray, parts: int) -> list[np.ndarray]:
    """Split `rows` (int64, ascending) into at most `parts` of about equal size, keeping row groups whole."""
    starts = SampleIndex.at(manifest, rows).starts
    cuts = np.unique(starts[np.searchsorted(starts, len(rows) * np.arange(1, parts) / parts)])
    return [part for part in np.split(rows, cuts) if len(part)]


def _part(model: str, held_out: HeldOut, storage: Storage, gpu: bool, rows: np.ndarray) -> Predictions:
    examiner = Evaluator.load(model, held_out, storage, gpu=gpu)
    return Predictions.joined([examiner.answers(batch) for batch in examiner.batches(rows)])


def _reference(outputs: OutputSpec, manifest: Manifest, held_out: HeldOut, storage: Storage) -> Teacher | None:
    """The teacher that a segmenter is scored against, or None for masks, which are then checked to exist."""
    if held_out.reference is None:
        without = len(manifest.without_mask(manifest.select(held_out.split)))
        if without:
            raise InputError(
                f"{without} tiles of split {held_out.split!r} in {held_out.tiles} have no mask; ingest masks, or judge "
                "agreement with a teacher (held_out.reference.classical=true).",
                code="mask-missing",
            )
        return None
    teacher = load_teacher(held_out.reference, manifest.header.mpp, storage)
    if teacher.outputs.scored != outputs.scored:
        raise InputError(
            f"the model decides among {', '.join(outputs.classes)} and the reference among "
            f"{', '.join(teacher.outputs.classes)}; name a reference with the same classes.",
            code="models-not-comparable",
        )
    return teacher
