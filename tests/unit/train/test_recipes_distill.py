"""Resolution distillation: its refusals, its checked run, and its loss of a batch."""

import dataclasses
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import histill
from histill.artifacts.model_folder import ModelCard, build, load, save
from histill.config.augment import Augment
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.config.distill_student import DistillConfig
from histill.config.load import set_value, validate
from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError
from histill.losses.loss import Loss
from histill.models.classifiers import Classifier
from histill.models.fake_quantization import list_layers, quantize_layers
from histill.models.projection import ProjectedStudent
from histill.search.configs import DistillSearch
from histill.search.sweep import prepare_sweep
from histill.storage.uris import join
from histill.stream.cached_views import CachedViews
from histill.stream.read import TileSource
from histill.stream.tile_batch import TileBatch
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.task import LossOutput, Task
from histill.tasks.training_task import TrainingTask
from histill.teachers.cache import address, decisions, finish_cache, read_header
from histill.teachers.shard_responses import ResponseJob, write_shard_responses
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import write_manifest
from histill.tiles.shards import shards_of
from histill.tiles.whole_table import read_table
from histill.train.build import build_learner, build_streams
from histill.train.checkpoint import TASK_NAME, Learner, restore_checkpoint, save_checkpoint
from histill.train.prepare import prepare_run
from histill.train.spec import RunSpec
from histill.train.task_state import gather_task_state, load_task_state

pytestmark = pytest.mark.unit

STORAGE = Storage()
OF_PIXELS = ("soft_dice", "dice")
OF_EMBEDDINGS = [name for name in Loss.model_fields if name.startswith("embedding_") or name == "tokens"]
TERMS = [name for name in Loss.model_fields if name not in ("deep", *OF_PIXELS, *OF_EMBEDDINGS)]  # for whole tiles
ALL_TERMS: dict[str, Any] = {name: {} for name in TERMS}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    """Tiles of 128 px at 0.5 um/px, labeled "stroma" and "tumour" alternately; four training cases of four tiles."""
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=24, tile_px=128, labels=True)


def saved_teacher(folder: Path, **changes: Any) -> str:
    values: dict[str, Any] = {
        "kind": "classification",
        "encoder": "resnet_gn",
        "decoder_channels": (),
        "classes": ("stroma", "tumour"),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "tile_px": 128,
        "tile_mpp": 0.5,
        "size_px": 128,
        "tiles_digest": "tiles",
        "train_cases": (),
        "histill": "0",
    }
    card = ModelCard(**values | changes)
    torch.manual_seed(3)
    save(str(folder), build(card), card)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_teacher(tmp_path_factory.mktemp("teacher"))


def configured(manifest: Manifest, teacher: str, runs: Path, **changes: Any) -> DistillConfig:
    data: dict[str, Any] = {
        "name": "run",
        "runs": str(runs),
        "data": {"tiles": manifest.uri, "batch_size": 4},
        "teacher": {"model": teacher},
        "student": {"encoder": "csat_tiny", "size_px": 32},
    }
    for key, value in changes.items():
        data = set_value(data, key.replace("__", "."), value)
    return validate(DistillConfig, data, "the test")


def first_batch(prepared: RunSpec, manifest: Manifest) -> TileBatch:
    training, _ = build_streams(prepared, manifest, 0, 1)
    return next(training.training_epoch(0, seed=0))


def loss_of(prepared: RunSpec, manifest: Manifest) -> tuple[LossOutput, ProjectedStudent]:
    torch.manual_seed(0)
    model = prepared.build_model()
    assert isinstance(model, ProjectedStudent)
    task = prepared.build_task()
    return task.loss(model.train(), first_batch(prepared, manifest)), model


def answer_of(task: TrainingTask, batch: TileBatch) -> torch.Tensor:
    """The teacher's logits."""
    assert task.responses is not None
    return task.responses.answer(batch, task.outputs)[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student__size_px": 160}, ["160 px", "choose at most 128 px"]),
        (
            {"student__size_px": 96},
            ["1.333 times", "student.size_px", "128, 64, 32, 16, 8", "allow_fractional_ratio=true"],
        ),
        ({"student__mpp": 0.75, "student__size_px": None}, ["0.75", "no whole number"]),
        ({"loss__features__student_layer": "stages.9"}, ["'stages.9'", "stages.0, stages.1, stages.2, stages.3"]),
        ({"loss__features__teacher_layer": "stages.3"}, ["teacher's layer 'stages.3'", "layer1, layer2"]),
        ({"loss__many_features": {"teacher_layers": ("layer5",)}}, ["'layer5'", "layer4"]),
        ({"loss__divergence": None}, ["no term on the model's outputs"]),
        ({"loss__cross_entropy": {"weight": -1.0}}, ["loss.cross_entropy.weight", "greater than or equal to 0"]),
        ({"labeled": 0.5}, ["no term of loss uses labels"]),
        ({"encoder": "r", "student__weights": "w"}, ["name one of them"]),
        ({"student": {"encoder": "convnextv2_atto", "size_px": 16}}, ["convnextv2_atto cannot see tiles of 16 px"]),
        ({"teacher__model": "nowhere"}, ["nowhere is neither a model folder"]),
    ],
)
def test_wrong_set_ups_are_refused(
    manifest: Manifest, teacher: str, tmp_path: Path, changes: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        prepare_run(configured(manifest, teacher, tmp_path, **changes))
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert "\n" not in message


def test_a_student_finer_than_its_teacher_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    coarse = saved_teacher(tmp_path / "teacher", size_px=64) if (tmp_path / "teacher").mkdir() is None else ""
    with pytest.raises(InputError, match=r"student would see tiles at 128 px \(0.5 um/px\).*64 px \(1 um/px\)"):
        prepare_run(configured(manifest, coarse, tmp_path, student__size_px=128))
    prepared = prepare_run(configured(manifest, coarse, tmp_path, student__size_px=32))
    assert prepared.views == Views(32, 64)  # the teacher's view is decoded at its own size


def test_another_ratio_can_be_asked_for(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    prepared = prepare_run(configured(manifest, teacher, tmp_path, student__size_px=96, allow_fractional_ratio=True))
    assert prepared.views == Views(96, 128)


def test_a_distillation_is_sent_out_with_its_teacher_s_classes(
    manifest: Manifest, teacher: str, tmp_path: Path
) -> None:
    prepared = prepare_run(configured(manifest, teacher, tmp_path))
    assert prepared.views == Views(32, 128)
    card = prepared.card
    assert (card.kind, card.classes, card.size_px) == ("classification", ("stroma", "tumour"), 32)
    assert card.teacher_digest is not None
    model = prepared.build_model()
    assert isinstance(model, ProjectedStudent)
    assert isinstance(model.model, Classifier)
    assert prepared.layers is not None
    assert prepared.layers.pairs == ((("stages.3", "layer4"), 256),)


def test_all_terms_together_teach_everything_that_learns(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    prepared = prepare_run(configured(manifest, teacher, tmp_path, loss=ALL_TERMS))
    terms, model = loss_of(prepared, manifest)
    assert set(terms.parts) == set(TERMS)
    assert all(value.isfinite() and value >= 0 for value in terms.parts.values())
    terms.loss.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert idle == []


@pytest.mark.parametrize("term", TERMS)
def test_each_term_by_itself_moves_the_student(manifest: Manifest, teacher: str, tmp_path: Path, term: str) -> None:
    alone: dict[str, Any] = dict.fromkeys(TERMS) | {"divergence": {"weight": 1e-9}, term: {}}
    prepared = prepare_run(configured(manifest, teacher, tmp_path, loss=alone, student__size_px=64))
    terms, model = loss_of(prepared, manifest)
    terms.loss.backward()
    stem = next(model.model.parameters())
    assert stem.grad is not None
    assert stem.grad.abs().max() > 1e-7


def test_the_two_terms_of_the_paper_by_hand(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    prepared = prepare_run(configured(manifest, teacher, tmp_path))
    terms, model = loss_of(prepared, manifest)
    batch, task = first_batch(prepared, manifest), prepared.build_task()
    assert batch.teacher is not None
    assert task.responses is not None
    high = task.responses.teacher.model  # type: ignore[union-attr]
    with torch.no_grad():
        answers = model(batch.student.float())
        target = high(batch.teacher.float())
        p, q = target.softmax(1), answers.logits.softmax(1)
        divergence = (p * (p / q).log()).sum(1).mean()
        wanted = high.network.forward_features(high.normalized(batch.teacher.float()))
        side = answers.projected["stages.3", "layer4"].shape[-1]
        pooled = torch.nn.functional.adaptive_max_pool2d(wanted, side)
        smooth = torch.nn.functional.interpolate(wanted, size=side, mode="bicubic")
        features = (answers.projected["stages.3", "layer4"] - (pooled + smooth) / 2).square().mean()
    torch.testing.assert_close(terms.parts["divergence"], divergence)
    torch.testing.assert_close(terms.parts["features"], features)
    torch.testing.assert_close(terms.loss.detach(), divergence + features)


def test_labels_are_seen_only_where_they_may_be(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    config = configured(manifest, teacher, tmp_path, loss__cross_entropy={}, labeled=0.25)
    prepared = prepare_run(config)
    labels = prepared.read_labels(manifest)
    assert labels is not None
    seen = labels[manifest.rows_of("train")] >= 0
    assert 0 < seen.sum() < len(seen)
    assert (labels[manifest.rows_of("val")] >= 0).all()
    assert prepared.cases is None  # all cases are used for training


def relabeled(manifest: Manifest, uri: Path, label: str | None) -> Manifest:
    column = read_table(manifest).schema.get_field_index("label")
    names = read_table(manifest)["label"].to_pylist()
    names[0] = label
    for row in manifest.rows_of("val"):
        names[row] = None
    table = read_table(manifest).set_column(column, "label", pa.array(names, pa.string()))
    return write_manifest(str(uri), table, tile_px=128, mpp=0.5, ingest="", storage=STORAGE)


def test_without_labels_the_validation_is_judged_by_the_teacher(
    manifest: Manifest, teacher: str, tmp_path: Path
) -> None:
    unlabeled = relabeled(manifest, tmp_path / "tiles", None)
    assert prepare_run(configured(unlabeled, teacher, tmp_path)).scored_by_teacher
    assert not prepare_run(configured(manifest, teacher, tmp_path)).scored_by_teacher


def test_a_label_that_is_no_class_of_the_teacher_is_refused(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    wrong = relabeled(manifest, tmp_path / "tiles", "fat")
    with pytest.raises(InputError, match=r"has the label 'fat'.*expected one of stroma, tumour"):
        prepare_run(configured(wrong, teacher, tmp_path, loss__cross_entropy={}))


def test_the_queue_holds_the_teacher_s_keys_of_earlier_tiles(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    config = configured(manifest, teacher, tmp_path, loss={"features": None, "contrastive": {"queue": 6}})
    prepared = prepare_run(config)
    model, task = prepared.build_model().train(), prepared.build_task()
    batch = first_batch(prepared, manifest)
    losses = [float(task.loss(model, batch).parts["contrastive"].detach()) for _ in range(3)]
    assert losses[0] < losses[1] < losses[2]  # more keys to discriminate: 4, 8, 10
    assert task._queue is not None
    assert len(task._queue) == 6


def test_a_resumed_run_remembers_the_keys_of_earlier_tiles(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    """Its losses equal those of a run that never stopped."""
    config = configured(manifest, teacher, tmp_path, loss={"features": None, "contrastive": {"queue": 10}})
    prepared = prepare_run(config)
    batch, cpu = first_batch(prepared, manifest), torch.device("cpu")

    def steps(learner: Learner, task: Task, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            torch.manual_seed(len(losses))
            learner.optimizer.zero_grad()
            loss = task.loss(learner.model.train(), batch).loss
            loss.backward()
            learner.optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    through, task = build_learner(prepared, manifest, cpu), prepared.build_task()
    steps(through, task, 2)
    through.task_state = gather_task_state(task, 0, 1)
    save_checkpoint(str(tmp_path), through, prepared.card)
    undisturbed = steps(through, task, 3)

    def resume() -> list[float]:
        resumed, again = build_learner(prepared, manifest, cpu), prepared.build_task()
        restore_checkpoint(str(tmp_path), resumed)
        load_task_state(again, resumed.task_state, 0)
        return steps(resumed, again, 3)

    assert resume() == undisturbed
    (tmp_path / TASK_NAME).unlink()  # as in checkpoints of earlier versions
    forgot = resume()
    assert forgot[0] < undisturbed[0]  # fewer keys to discriminate


def test_every_worker_gets_its_own_memory_back(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    config = configured(manifest, teacher, tmp_path, loss={"features": None, "contrastive": {"queue": 6}})
    task = prepare_run(config).build_task()
    others = torch.tensor([[3.0, 3.0]])
    for worker, queue in enumerate(([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]])):
        load_task_state(task, {"0.queue": others, f"{worker + 1}.queue": torch.tensor(queue)}, worker + 1)
        assert task.state_dict()["queue"].tolist() == queue
    gathered = gather_task_state(task, 1, 3)
    assert {name: len(rows) for name, rows in gathered.items()} == {"0.queue": 0, "1.queue": 2, "2.queue": 0}
    load_task_state(task, gathered, 7)  # a new worker
    assert task.state_dict() == {}


def cached(manifest: Manifest, teacher: str, out: Path, **changes: Any) -> str:
    """A response cache as the job writes it, made without Ray."""
    keys = {"tiles": manifest.uri, "teacher": {"model": teacher}, "output": str(out), **changes}
    config = validate(CacheConfig, keys, "the test")
    made = load_teacher(config.teacher, 0.5, STORAGE)
    folder = address(made.digest, manifest.header.digest, config.views, config.seed, config.augment, config.layer)
    views = CachedViews(join(config.output, folder), made.outputs, config.views, config.seed, config.augment)
    job = ResponseJob(config, views)
    for shard in shards_of(manifest):
        write_shard_responses(made, manifest, shard, job)
    assert finish_cache(job, made, manifest, 0).dense == made.outputs.dense
    return views.uri


def test_cached_answers_to_whole_tiles_are_the_live_ones(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    upright: dict[str, Any] = {"data__augment__flips": False, "loss__features": None}
    live = prepare_run(configured(manifest, teacher, tmp_path, **upright))
    responses = cached(manifest, teacher, tmp_path / "responses")
    stored = prepare_run(configured(manifest, teacher, tmp_path, responses=responses, **upright))
    assert stored.views == Views(32)  # no view for the teacher, whose responses are cached
    batch = first_batch(stored, manifest)
    assert batch.response is not None
    assert batch.response.shape == (4, 1, 1, 1)
    expected, _ = loss_of(live, manifest)
    got, _ = loss_of(stored, manifest)
    torch.testing.assert_close(got.parts["divergence"], expected.parts["divergence"], atol=0.02, rtol=0)
    answers = [answer_of(each.build_task(), first_batch(each, manifest)) for each in (live, stored)]
    gaps = [each[:, 1] - each[:, 0] for each in answers]
    torch.testing.assert_close(gaps[1], gaps[0], atol=0.04, rtol=0)


def test_cached_answers_to_views_are_to_what_the_student_sees(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    responses = cached(manifest, teacher, tmp_path / "responses", views=3, augment={"flips": True})
    prepared = prepare_run(
        configured(manifest, teacher, tmp_path, responses=responses, loss__features=None, student__size_px=128)
    )
    task = prepared.build_task()
    high = load_teacher(prepared.config.teacher, 0.5, STORAGE)  # type: ignore[attr-defined]
    training, _ = build_streams(prepared, manifest, 0, 1)
    for epoch in (0, 1):
        batch = next(training.training_epoch(epoch, seed=0))
        expected = high.respond(batch.student)  # the student sees 128 px, like the teacher
        stored = answer_of(task, batch)
        torch.testing.assert_close(stored[:, 1] - stored[:, 0], expected[:, 1] - expected[:, 0], atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ["loss.features", "layer=<name>", "responses=null"]),
        ({"loss__features": None, "data__augment__crop_px": 64}, ["crop_px is 64", "are to whole tiles"]),
    ],
)
def test_what_cached_answers_cannot_teach_is_refused(
    manifest: Manifest, teacher: str, tmp_path: Path, changes: dict[str, Any], said: list[str]
) -> None:
    responses = cached(manifest, teacher, tmp_path / "responses")
    with pytest.raises(InputError) as caught:
        prepare_run(configured(manifest, teacher, tmp_path, responses=responses, **changes))
    assert all(part in str(caught.value) for part in said), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dense_student_learns_from_a_dense_teacher_at_a_lower_resolution(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    dense = saved_teacher(
        tmp_path / "teacher", kind="segmentation", decoder_channels=(16, 16, 8, 8, 8), classes=("background", "nucleus")
    )
    terms: dict[str, Any] = {"cross_entropy": {}, "decoupled": {}, "relational": {}, "many_features": {}}
    config = configured(
        manifest, dense, tmp_path, loss=terms, student__decoder_channels=(16, 16, 8, 8, 8), student__size_px=64
    )
    prepared = prepare_run(config)
    assert prepared.card.kind == "segmentation"
    assert prepared.source.masks
    got, model = loss_of(prepared, manifest)
    got.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert got.parts["divergence"] > 0
    with pytest.raises(InputError, match=r"loss\.attention .*classifiers"):
        prepare_run(configured(manifest, dense, tmp_path, loss={"attention": {}}, student__size_px=64))
    with pytest.raises(InputError, match="multiple of 32"):
        prepare_run(configured(manifest, dense, tmp_path, student__size_px=16))


@pytest.mark.parametrize("job", [PretrainConfig, DistillConfig])
def test_all_terms_of_pixels_teach_in_any_job_with_a_teacher(
    manifest: Manifest, tmp_path: Path, job: type[PretrainConfig | DistillConfig]
) -> None:
    (tmp_path / "teacher").mkdir()
    decoder, classes = (16, 16, 8, 8, 8), ("background", "nucleus")
    dense = saved_teacher(
        tmp_path / "teacher", kind="segmentation", decoder_channels=decoder, classes=classes, size_px=64
    )
    terms = [name for name in Loss.model_fields if name not in ("attention", *OF_EMBEDDINGS)]
    keys = configured(manifest, dense, tmp_path).model_dump(include={"name", "runs", "data", "teacher"})
    student = {"encoder": "csat_tiny", "size_px": 32, "decoder_channels": decoder}
    loss: dict[str, Any] = {name: {} for name in terms}
    prepared = prepare_run(validate(job, keys | {"student": student, "loss": loss}, "the test"))
    assert prepared.views == Views(32, 64)
    assert prepared.source.masks
    got, model = loss_of(prepared, manifest)
    assert list(got.parts) == terms
    assert all(value.isfinite() for value in got.parts.values())
    got.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_pretraining_compares_cached_feature_maps(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    decoder = (16, 16, 8, 8, 8)
    dense = saved_teacher(
        tmp_path / "teacher", kind="segmentation", decoder_channels=decoder, classes=("background", "nucleus")
    )
    keys = configured(manifest, dense, tmp_path).model_dump(include={"name", "runs", "data", "teacher"})
    keys["data"]["augment"]["flips"] = False
    student = {"encoder": "csat_tiny", "size_px": 32, "decoder_channels": decoder}
    keys |= {"student": student, "loss": {"deep": None, "features": {"teacher_layer": "layer3"}}}
    live = prepare_run(validate(PretrainConfig, keys, "the test"))
    responses = cached(manifest, dense, tmp_path / "responses", layer="layer3")
    stored = prepare_run(validate(PretrainConfig, keys | {"responses": responses}, "the test"))
    expected, got = (loss_of(prepared, manifest)[0].parts["features"] for prepared in (live, stored))
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0.01)


def test_classes_are_weighted_by_the_labels_that_are_seen(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    names = [row["label"] if row["case"] != "case-0" else "stroma" for row in read_table(manifest).to_pylist()]
    column = read_table(manifest).schema.get_field_index("label")
    table = read_table(manifest).set_column(column, "label", pa.array(names, pa.string()))
    uneven = write_manifest(str(tmp_path / "tiles"), table, tile_px=128, mpp=0.5, ingest="", storage=STORAGE)
    changes: dict[str, Any] = {"loss__cross_entropy": {"class_weights": True}}
    task = prepare_run(configured(uneven, teacher, tmp_path, **changes)).build_task()
    assert isinstance(task, TrainingTask)
    assert task.class_weights == pytest.approx((16 / (2 * 10), 16 / (2 * 6)))
    few = prepare_run(configured(uneven, teacher, tmp_path, labeled=0.25, **changes))
    labels = few.read_labels(uneven)
    assert labels is not None
    counts = np.bincount(labels[uneven.rows_of("train")] + 1, minlength=3)[1:]
    few_weights = few.build_task().class_weights  # type: ignore[attr-defined]
    assert few_weights == pytest.approx([counts.sum() / ((counts > 0).sum() * max(n, 1)) * (n > 0) for n in counts])


def test_cached_feature_maps_are_the_live_ones(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    responses = cached(manifest, teacher, tmp_path / "responses", layer="layer3")
    terms: dict[str, Any] = {"features": {"teacher_layer": "layer3"}, "relational": None, "contrastive": {}}
    upright: dict[str, Any] = {"data__augment__flips": False}
    live = prepare_run(configured(manifest, teacher, tmp_path, loss=terms | {"contrastive": None}, **upright))
    stored = prepare_run(configured(manifest, teacher, tmp_path, loss=terms, responses=responses, **upright))
    assert stored.views == Views(32)
    batch = first_batch(stored, manifest)
    assert batch.map is not None
    assert batch.map.shape == (4, 128, 8, 8)
    expected, _ = loss_of(live, manifest)
    got, _ = loss_of(stored, manifest)
    torch.testing.assert_close(got.parts["features"], expected.parts["features"], atol=1e-3, rtol=0.01)
    with pytest.raises(InputError, match="teacher's layer 'layer4', which it does not have; name one of layer3"):
        prepare_run(
            configured(manifest, teacher, tmp_path, responses=responses, loss__features__teacher_layer="layer4")
        )
    with pytest.raises(InputError, match=r"loss\.attention needs a live teacher"):
        prepare_run(configured(manifest, teacher, tmp_path, responses=responses, loss__attention={}))
    with pytest.raises(InputError, match="has no layer 'layer9'; its layers are act1, layer1"):
        load_teacher(stored.config.teacher, 0.5, STORAGE).map_shape("layer9", 128)  # type: ignore[attr-defined]


def test_the_classes_of_cached_answers_can_be_balanced(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    responses = cached(manifest, teacher, tmp_path / "responses")
    changes: dict[str, Any] = {"loss__features": None, "data__balance": "response"}
    prepared = prepare_run(configured(manifest, teacher, tmp_path, responses=responses, **changes))
    assert prepared.source.responses is not None
    found = decisions(prepared.source.responses, manifest, STORAGE)
    training, _ = build_streams(prepared, manifest, 0, 1)
    assert np.array_equal(training.groups, found)
    rows = manifest.rows_of("train")
    some = np.arange(24) % 8 == 0  # two of the 16 training tiles
    uneven = dataclasses.replace(training, groups=np.where(some, 3, 1))
    epoch = np.asarray(uneven.tiles_of_epoch(0, seed=0))
    assert len(epoch) == len(rows)
    assert some[epoch].sum() == len(rows) / 2
    with pytest.raises(InputError, match="needs cached responses to whole tiles"):
        prepare_run(configured(manifest, teacher, tmp_path, **changes))


def test_decisions_are_those_of_the_teacher(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    three = saved_teacher(tmp_path / "teacher", classes=("a", "b", "c"))
    uri = cached(manifest, three, tmp_path / "responses")
    found = decisions(read_header(uri, STORAGE).at(uri), manifest, STORAGE)
    stream = TileStream(
        manifest=manifest, source=TileSource(manifest.uri, manifest.header.digest, STORAGE), split="train",
        views=Views(128), batch_size=16, worker=0, workers=1,
    )  # fmt: skip
    high = load_teacher(TeacherConfig(model=three), 0.5, STORAGE)
    (batch,) = stream.exact_pass()
    logits = high.respond(batch.student)
    certain = (logits.topk(2, 1).values.diff().abs() > 0.1).flatten()
    assert certain.any()
    assert np.array_equal(found[batch.index.numpy()][certain], logits.argmax(1).numpy()[certain])


def test_the_gradient_does_not_depend_on_how_a_batch_is_divided(
    manifest: Manifest, teacher: str, tmp_path: Path
) -> None:
    config = configured(manifest, teacher, tmp_path, loss__cross_entropy={}, labeled=0.25, data__batch_size=8)
    prepared = prepare_run(config)
    torch.manual_seed(0)
    model, task, batch = prepared.build_model(), prepared.build_task(), first_batch(prepared, manifest)
    model.train()  # CSAT has no drop-path here and no batch statistics
    assert batch.label is not None
    assert 0 < int((batch.label >= 0).sum()) < 8

    def gradient(parts: list[slice]) -> torch.Tensor:
        model.zero_grad()
        for part in parts:
            tensors = {name: value[part] for name, value in vars(batch).items() if torch.is_tensor(value)}
            some = TileBatch(**(vars(batch) | tensors))
            (task.loss(model, some).loss * len(some.index) / 8).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    whole, divided = gradient([slice(8)]), gradient([slice(0, 2), slice(2, 5), slice(5, 8)])
    torch.testing.assert_close(divided, whole, atol=1e-5 * float(whole.abs().max()), rtol=1e-3)


def test_a_teacher_without_layers_teaches_its_answers(manifest: Manifest, tmp_path: Path) -> None:
    config = validate(
        DistillConfig,
        {
            "name": "run",
            "runs": str(tmp_path),
            "data": {"tiles": manifest.uri, "batch_size": 4, "augment": {"crop_px": 64}},
            "teacher": {"classical": True},
            "student": {"encoder": "csat_tiny", "decoder_channels": (16, 16, 8, 8, 8), "size_px": 64},
            "loss": {"features": None},
        },
        "the test",
    )
    prepared = prepare_run(config)
    assert (prepared.views, prepared.scored_by_teacher) == (Views(64, 128), True)
    terms, _ = loss_of(prepared, manifest)
    assert terms.parts["divergence"] > 0
    with pytest.raises(InputError, match="only windows of 64, 128 px"):
        prepare_run(config.model_copy(update={"data": config.data.model_copy(update={"augment": Augment(crop_px=96)})}))


def test_a_teacher_that_explains_itself_judges_without_gradients(
    manifest: Manifest, teacher: str, tmp_path: Path
) -> None:
    unlabeled = relabeled(manifest, tmp_path / "tiles", None)
    prepared = prepare_run(configured(unlabeled, teacher, tmp_path, loss__attention={}))
    assert prepared.scored_by_teacher
    task = prepared.build_task()
    with torch.inference_mode():
        decisions = task._decisions(first_batch(prepare_run(configured(manifest, teacher, tmp_path)), manifest))
    assert decisions.shape == (4,)


def test_a_sweep_reads_its_tiles_and_loads_its_teacher_once(
    manifest: Manifest, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many range ends are checked as runs."""
    counts = dict.fromkeys(("histill.tiles.manifest_file.hold_rows", "histill.teachers.network.load"), 0)

    def count(name: str) -> None:
        module, _, function = name.rpartition(".")
        real = pkgutil.resolve_name(name)

        def counting(*given: Any, **keys: Any) -> Any:
            counts[name] += 1
            return real(*given, **keys)

        monkeypatch.setattr(pkgutil.resolve_name(module), function, counting)

    for name in counts:
        count(name)
    data = configured(manifest, teacher, tmp_path).model_dump()
    space = {"student.size_px": {"choice": (32, 64, 128)}, "loss.divergence.temperature": {"loguniform": (1.0, 8.0)}}
    prepare_sweep(validate(DistillSearch, data | {"space": space}, "the test"))
    assert list(counts.values()) == [1, 1]


def test_a_student_can_be_trained_with_the_roundings_of_int8(manifest: Manifest, teacher: str, tmp_path: Path) -> None:
    changes = {"loss__features": None, "quantization_aware": True, "optimizer__epochs": 1}
    config = configured(manifest, teacher, tmp_path, **changes)
    prepared = prepare_run(config)
    torch.manual_seed(0)
    model = prepared.build_model().eval()
    assert isinstance(model, ProjectedStudent)
    torch.manual_seed(0)
    plain = prepared.build_network().eval()
    names = list_layers(plain)
    assert names
    tiles = 255 * torch.rand(4, 3, 32, 32)
    exact = plain(tiles)
    quantize_layers(plain, names)
    torch.testing.assert_close(model(tiles), plain(tiles))
    assert not torch.allclose(model(tiles), exact, atol=1e-6)

    trained = histill.distill_student(config, local=True)
    shipped, card, _ = load(trained.model, STORAGE)
    assert set(shipped.state_dict()) == set(build(card).state_dict())
    with pytest.raises(InputError, match="which compile cannot trace"):
        configured(manifest, teacher, tmp_path, quantization_aware=True, compile=True)
