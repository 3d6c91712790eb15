"""Evaluate a model on held-out tiles against labels, masks or a teacher."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
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
from histill.config.engine import EngineOption
from histill.config.score_model import HeldOut
from histill.engines.loaded_model import LoadedModel
from histill.engines.start import Work, start_engine
from histill.errors import InputError
from histill.evaluate.object_counts import count_tiles, find_mask_objects, find_objects
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
from histill.stream.prefetch import Prefetched
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
    answer: Callable[[Tensor], Tensor] | None = None  # an export of the model, on the CPU, that answers in its place

    @classmethod
    def load(cls, model: str, held_out: HeldOut, storage: Storage, *, gpu: bool | None = None) -> "Evaluator":
        """Load a model folder or finished run; onto a GPU if there is one, unless `gpu` says otherwise.

        Raises InputError if the model's classes or resolution do not match the tiles, the split is empty, masks are
        missing, or labels are missing or not among the model's classes.
        """
        network, card, digest = load(resolve(model, storage), storage)
        manifest = read_manifest(held_out.tiles, storage)
        check_like(card, manifest.header, held_out.tiles)
        _check_columns(manifest, held_out)
        teacher = None
        if card.outputs.dense:
            teacher = _reference(card.outputs, manifest, held_out, storage)
        else:
            _check_for_classifier(held_out)
        device = torch.device("cuda" if (torch.cuda.is_available() if gpu is None else gpu) else "cpu")
        found = cls(network.to(device), card, digest, manifest, held_out, storage, teacher, device)
        found.labels  # noqa: B018 - raises for missing or unknown labels
        return found

    def start(self, asked: EngineOption, model: str, tiles: int) -> "Evaluator":
        """The same with the engine that was asked for, which is going to run so many tiles; `model` is the model's URI.

        Says which one that is. Raises InputError as `start_engine` does.
        """
        if asked == "torch":
            return self
        with closing(self.batches(self.rows[: self.held_out.batch_size])) as batches:
            first = next(batches)
        loaded = LoadedModel(resolve(model, self.storage), self.network, self.card, self.digest, self.storage)
        work = Work(tiles, self.held_out.batch_size, torch.get_num_threads(), self.device)
        engine = start_engine(asked, loaded, first.student, work)
        engine.choice.say()
        return self if engine.choice.name == "torch" else replace(self, answer=engine)

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

    def batches(self, rows: np.ndarray, *, whole: bool = False) -> Prefetched[TileBatch]:
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
        if self.answer is not None:
            said = self.answer(seen.float())
        else:
            tiles = seen.to(self.device).float()
            said = (self.network(tiles) if self.probe is None else embed(self.network, tiles)).float().cpu()
        if self.probe is not None:
            return torch.from_numpy(self.probe.logits(said.numpy()))
        return resize_logits(said, self.card.tile_px) if self.outputs.dense else said

    def reference(self, batch: TileBatch) -> Tensor:
        """A segmenter's reference, int64 [B, H, W] among the scored classes."""
        return self._refer(batch)[0]

    def _refer(self, batch: TileBatch) -> tuple[Tensor, Tensor | None]:
        """`reference`, and the teacher's logits [B, K, H, W], None for masks."""
        if self.teacher is None:
            return read_masks(batch, self.outputs.scored, partial(tile_name, self.manifest)), None
        assert batch.teacher is not None
        logits = self.teacher.respond(batch.teacher).cpu()
        return self.teacher.outputs.decide(logits), logits

    def _count_objects(self, logits: Tensor, reference: Tensor, told: Tensor | None) -> np.ndarray | None:
        """The counts of a batch's objects, [B, K - 1, 6], where they are scored; `told` are the teacher's logits."""
        objects, mpp = self.held_out.objects, self.manifest.header.mpp
        if objects is None:
            return None
        if told is None or self.teacher is None:
            true = find_mask_objects(reference, mpp, objects)
        else:
            true = find_objects(told, self.teacher.outputs, mpp, objects)
        return count_tiles(find_objects(logits, self.outputs, mpp, objects), true, reference, len(self.outputs.scored))

    def answers(self, batch: TileBatch, seen: Tensor | None = None) -> Predictions:
        """Predict the tiles of a batch, or `seen` in their place, whose objects are not counted."""
        valid = batch.valid
        logits, counts = self.logits(batch.student if seen is None else seen)[valid], None
        if self.outputs.dense:
            decisions = self.outputs.decide(logits)
            reference, told = (None if each is None else each[valid] for each in self._refer(batch))
            assert reference is not None
            said = count_confusion(decisions, reference, len(self.outputs.scored)).numpy()
            counts = self._count_objects(logits, reference, told) if seen is None else None
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
            objects=counts,
        )


@dataclass(frozen=True)
class Examined:
    """A model, or the probe of its encoder, with its predictions for the whole split."""

    examiner: Evaluator
    answers: Predictions
    judgement: Judgement | None = None  # of an encoder: what its embeddings tell without the probe
    probe: dict[str, float | str] = field(default_factory=dict)  # of an encoder: facts about the probe


def predict_split(
    examiner: Evaluator, model: str, workers: Workers | None, engine: EngineOption = "torch"
) -> Predictions:
    """Predict the whole split with `examiner`'s model, counting every tile once; `model` is the model's URI.

    Runs in this process or, with `workers`, as tasks on the connected cluster, which read `model` and start the
    `engine` themselves.
    """
    rows, title = examiner.rows, f"scoring {examiner.held_out.split}"
    collect = partial(
        run_sharded, expected=len(rows), title=title, unit="tiles", count=lambda part: len(part.rows) + part.corrupt
    )
    if workers is None or workers.in_process:
        answers = Predictions.joined(collect(map(examiner.answers, examiner.batches(rows))))
    else:
        work = partial(_part, model, examiner.held_out, examiner.storage, workers.gpus > 0, engine)
        pieces = split_by_row_group(examiner.manifest, rows, PARTS_PER_WORKER * workers.count)
        with connect_cluster(), name_job(Job("score_model", model)):
            # joined in here: arrays of tasks may lie in memory that goes with Ray
            answers = Predictions.joined(collect(map_tasks(work, pieces, cpus=workers.cpus, gpus=workers.gpus)))
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


def _part(
    model: str, held_out: HeldOut, storage: Storage, gpu: bool, engine: EngineOption, rows: np.ndarray
) -> Predictions:
    examiner = Evaluator.load(model, held_out, storage, gpu=gpu).start(engine, model, len(rows))
    return Predictions.joined([examiner.answers(batch) for batch in examiner.batches(rows)])


def _check_columns(manifest: Manifest, held_out: HeldOut) -> None:
    lacking = [name for name in held_out.by if name not in manifest.header.columns]
    if lacking:
        kept = ", ".join(manifest.header.columns) or "none"
        raise InputError(
            f"{held_out.tiles} keeps no column {lacking[0]!r} of its index (it keeps {kept}); correct held_out.by, or "
            f"ingest with keep_columns=[{lacking[0]}].",
            code="column-missing",
        )


def _check_for_classifier(held_out: HeldOut) -> None:
    for key in ("reference", "objects"):
        if getattr(held_out, key) is not None:
            raise InputError(
                f"held_out.{key} is for models that mark pixels, and a classifier is scored against labels; leave it "
                "out.",
                code="option-not-applicable",
            )


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
