"""Pretraining on embeddings: what is cached and what is live teach the same, and the product is an encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histill.artifacts.model_folder import ModelCard, build, load, save
from histill.config.augment import Augment
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage, Teacher
from histill.config.distill_student import DistillConfig
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.runs import RunConfig
from histill.errors import InputError
from histill.models.transfer import find_encoder
from histill.search.configs import SEARCHES
from histill.search.space import build_trial_config
from histill.search.sweep import prepare_sweep
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tasks.training_task import TrainingTask
from histill.teachers import cache as caching
from histill.teachers.cache import CachedResponses, CacheHeader, cache_responses, read_header
from histill.teachers.teacher import load_teacher
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest
from histill.train import inputs
from histill.train.build import build_learner, build_streams
from histill.train.checkpoint import Learner, restore_checkpoint, save_checkpoint
from histill.train.loop import Hooks, train
from histill.train.prepare import prepare_run
from histill.train.task_state import gather_task_state, load_task_state

pytestmark = pytest.mark.unit

NETWORK = {"encoder": "csat_tiny", "decoder_channels": (16, 16, 8, 8, 8), "size_px": 32}
STORAGE = Storage()


def symmetries(planes: torch.Tensor) -> list[torch.Tensor]:
    """The eight flips and quarter turns of planes [C, S, S]."""
    return [torch.rot90(each, quarters, (1, 2)) for each in (planes, planes.flip(2)) for quarters in range(4)]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=24, tile_px=64, labels=True)


def encoder_folder(folder: Path, manifest: Manifest, seed: int, kind: Any = "encoder") -> str:
    """A random encoder as a model folder, which is a teacher of embeddings; or a classifier of two classes."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    card = ModelCard(
        kind=kind,
        encoder="resnet10t",
        decoder_channels=(),
        classes=() if kind == "encoder" else ("stroma", "tumour"),
        width=64 if kind == "encoder" else None,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        tile_px=64,
        tile_mpp=manifest.header.mpp,
        size_px=64,
        tiles_digest="",
        train_cases=(),
        histill="0",
    )
    model = build(card)
    width = model(torch.zeros(1, 3, 64, 64)).shape[1] if kind == "encoder" else None
    save(str(folder), model, card.model_copy(update={"width": width}))
    return str(folder)


@pytest.fixture
def cached(
    manifest: Manifest, tmp_path: Path, in_process: Callable[..., None]
) -> Callable[..., tuple[str, CachedResponses]]:
    """`cached(seed)`: a teacher's folder and the cache of its embeddings."""
    in_process(caching)

    def make(seed: int = 0, **keys: Any) -> tuple[str, CachedResponses]:
        folder = encoder_folder(tmp_path / f"teacher-{seed}-{len(keys)}", manifest, seed)
        data = {"tiles": manifest.uri, "teacher": {"model": folder}, "output": str(tmp_path / "caches"), **keys}
        return folder, cache_responses(validate(CacheConfig, data, "the test"))

    return make


def learn(config: PretrainConfig) -> tuple[list[float], Any]:
    """Losses of each epoch; the learner, the run and the reports of the epochs."""
    spec = prepare_run(config)
    found: list[dict[str, float]] = []
    manifest = read_manifest(config.data.tiles, STORAGE)
    learner = build_learner(spec, manifest, torch.device("cpu"))
    training, validation = build_streams(spec, manifest, 0, 1)
    hooks = Hooks(show=lambda snapshot: None, save=found.append)
    train(learner, learner.model, spec.build_task(), training, validation, config, hooks)
    return [each["loss"] for each in found], (learner, spec, found)


def config_of(manifest: Manifest, tmp_path: Path, name: str, embeddings: dict[str, Any], **keys: Any) -> PretrainConfig:
    data = {
        "name": name,
        "runs": str(tmp_path / "runs"),
        "data": {"tiles": manifest.uri, "batch_size": 4, "augment": {"flips": False}},
        "student": NETWORK,
        "embeddings": embeddings,
        "optimizer": {"epochs": 2},
        **keys,
    }
    return validate(PretrainConfig, data, "the test")


def test_the_cache_holds_what_the_teacher_answers(manifest: Manifest, cached: Callable[..., Any]) -> None:
    folder, made = cached()
    header = made.header
    model, card, _ = load(folder, STORAGE)
    assert header.outputs.kind == "encoder"
    assert header.width == card.width
    assert header.mean is not None
    assert len(header.mean) == card.width
    source = TileSource(manifest.uri, manifest.header.digest, STORAGE, embeddings=(("a", header.at(made.uri)),))
    stream = TileStream(
        manifest=manifest,
        source=source,
        split="",
        only=np.arange(24),
        views=Views(64),
        batch_size=8,
        worker=0,
        workers=1,
    )
    seen = []
    for batch in stream.exact_pass():
        with torch.inference_mode():
            expected = model(batch.student)
        seen.append(expected)
        torch.testing.assert_close(batch.embeddings["a"], expected, rtol=2**-11, atol=1e-6)
    everything = torch.cat(seen).double()
    np.testing.assert_allclose(header.mean, everything.mean(0), rtol=1e-2, atol=1e-3)
    assert header.scale == pytest.approx(float(everything.var(0, correction=0).mean() ** -0.5), rel=1e-2)


@pytest.mark.parametrize(
    ("terms", "error"),
    [
        (("embedding_cosine", "embedding_mse", "embedding_smooth_l1"), 1e-3),
        (("embedding_cosine", "tokens"), 1e-2),
        # these look at differences between a random teacher's embeddings, which are alike but for a few thousandths
        (("embedding_relational", "embedding_contrastive"), 1e-2),
    ],
)
def test_cached_and_live_give_the_same_losses(
    manifest: Manifest, tmp_path: Path, cached: Callable[..., Any], terms: tuple[str, ...], error: float
) -> None:
    folder, made = cached(**({"layer": "tokens"} if "tokens" in terms else {}))
    loss = {term: {} for term in terms}
    as_it_is = {"normalize": "none"}
    one = config_of(manifest, tmp_path, "cached", {"a": {"responses": made.uri, **as_it_is}}, loss=loss)
    other = config_of(manifest, tmp_path, "live", {"a": {"teacher": {"model": folder}, **as_it_is}}, loss=loss)
    (from_cache, _), (live, _) = learn(one), learn(other)
    assert from_cache == pytest.approx(live, rel=error)


def test_the_product_is_an_encoder_that_a_finetuning_starts_from(
    manifest: Manifest, tmp_path: Path, cached: Callable[..., Any]
) -> None:
    (_, one), (_, two) = cached(0), cached(1)
    teachers = {"one": {"responses": one.uri}, "two": {"responses": two.uri, "weight": 0.5}}
    _, (learner, spec, found) = learn(config_of(manifest, tmp_path, "several", teachers))
    assert spec.card.kind == "encoder"
    assert {"val_cka", "val_cka_one", "val_cka_two"} <= found[-1].keys()
    assert 0 < found[-1]["val_cka"] <= 1
    folder = tmp_path / "encoder"
    folder.mkdir()
    save(str(folder), learner.shipped, spec.card)
    model, card, _ = load(str(folder), STORAGE)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, card.width)
    data = {
        "name": "tuned",
        "runs": str(tmp_path / "runs"),
        "data": {"tiles": manifest.uri, "batch_size": 4},
        "student": NETWORK,
        "encoder": str(folder),
    }
    for target in ("classification", "segmentation"):
        tuned = prepare_run(validate(FinetuneConfig, {**data, "target": target}, "the test"))
        given = next(model.network.parameters())
        built = tuned.build_network()
        assert any(torch.equal(given, each) for each in built.parameters() if each.shape == given.shape)


def test_pretraining_and_distillation_start_from_an_encoder(
    manifest: Manifest, tmp_path: Path, cached: Callable[..., Any]
) -> None:
    """Of a run on embeddings or of RCKD, with its lineage and its normalization of pixels."""
    _, made = cached()
    on_embeddings = config_of(manifest, tmp_path, "first", {"a": {"responses": made.uri}})
    rckd = config_of(manifest, tmp_path, "rckd", {}, teacher={"classical": True})
    own = {"mean": (0.1, 0.2, 0.3), "unknown_teachers": ("a teacher of the encoder",)}
    folders = []
    for spec in map(prepare_run, (on_embeddings, rckd)):
        folders.append(tmp_path / spec.card.kind)
        folders[-1].mkdir()
        save(str(folders[-1]), spec.build_network(), spec.card.model_copy(update=own))
    teacher = {"model": encoder_folder(tmp_path / "classifier", manifest, 0, kind="classification")}
    shared = {"data": {"tiles": manifest.uri, "batch_size": 4}, "runs": str(tmp_path / "runs"), "student": NETWORK}
    for folder in folders:
        start = {"encoder": str(folder)}
        runs: list[RunConfig] = [
            config_of(manifest, tmp_path, "next", {"a": {"responses": made.uri}}, **start),
            config_of(manifest, tmp_path, "next", {}, teacher={"classical": True}, **start),
            validate(DistillConfig, {"name": "next", "teacher": teacher, **shared, **start}, "the test"),
        ]
        given = [each for each in find_encoder(load(str(folder), STORAGE)[0]).parameters() if each.dim() == 4]
        for config in runs:
            prepared = prepare_run(config)
            built = list(find_encoder(prepared.build_network()).parameters())
            for each in given:
                assert any(torch.equal(each, other) for other in built if other.shape == each.shape)
            assert prepared.card.mean == own["mean"]
            assert "a teacher of the encoder" in prepared.card.unknown_teachers
    other = {"encoder": str(folders[0]), "student": {**NETWORK, "encoder": "resnet10t"}}
    with pytest.raises(InputError, match=r"with the encoder csat_tiny and student\.encoder is resnet10t"):
        prepare_run(config_of(manifest, tmp_path, "next", {"a": {"responses": made.uri}}, **other))


def test_a_teacher_of_embeddings_is_refused_where_classes_are_learned(manifest: Manifest, tmp_path: Path) -> None:
    teacher = {"model": encoder_folder(tmp_path / "teacher", manifest, 0)}
    with pytest.raises(InputError, match=r"answers with embeddings.*name it as embeddings\.<name>\.teacher"):
        prepare_run(config_of(manifest, tmp_path, "refused", {}, teacher=teacher))
    shared = {"data": {"tiles": manifest.uri, "batch_size": 4}, "runs": str(tmp_path / "runs"), "student": NETWORK}
    config = validate(DistillConfig, {"name": "refused", "teacher": teacher, **shared}, "the test")
    with pytest.raises(InputError, match=r"learns predictions of classes; use histill pretrain with"):
        prepare_run(config)


def test_the_order_of_the_shards_is_not_in_a_cache(
    manifest: Manifest, tmp_path: Path, in_process: Callable[..., None]
) -> None:
    """Whoever computes the statistics of embeddings finds the same."""
    folder = encoder_folder(tmp_path / "teacher", manifest, 0)
    headers = []
    for backwards in (False, True):
        in_process(caching, backwards=backwards)
        data = {"tiles": manifest.uri, "teacher": {"model": folder}, "output": str(tmp_path / str(backwards))}
        headers.append(cache_responses(validate(CacheConfig, data, "the test")).header)
    assert headers[0] == headers[1]


def test_an_embedding_that_float16_cannot_hold_is_refused(
    manifest: Manifest, tmp_path: Path, in_process: Callable[..., None]
) -> None:
    in_process(caching)
    folder = encoder_folder(tmp_path / "teacher", manifest, 0)
    model, card, _ = load(folder, STORAGE)
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(100)
    save(folder, model, card)
    data = {"tiles": manifest.uri, "teacher": {"model": folder}, "output": str(tmp_path / "caches")}
    with pytest.raises(InputError, match=r"nan or beyond 65504.*set teacher\.encoder\.precision=fp32"):
        cache_responses(validate(CacheConfig, data, "the test"))


def test_a_sweep_draws_the_weights_of_teachers_and_reads_each_cache_once(
    manifest: Manifest, tmp_path: Path, cached: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, one), (_, two) = cached(0), cached(1)
    read: list[str] = []

    def counted(uri: str, storage: Storage) -> CacheHeader:
        read.append(uri)
        return read_header(uri, storage)

    monkeypatch.setattr(inputs, "read_header", counted)
    data = {
        "job": "pretrain_student",
        "name": "sweep",
        "runs": str(tmp_path / "runs"),
        "data": {"tiles": manifest.uri, "batch_size": 4},
        "student": NETWORK,
        "embeddings": {"one": {"responses": one.uri}, "two": {"responses": two.uri}},
        "space": {
            "embeddings.one.weight": {"loguniform": (0.1, 10)},
            "embeddings.two.normalize": {"choice": ("scale", "none")},
        },
    }
    search = SEARCHES.models["pretrain_student"]
    config = validate(search, data, "the test")
    prepared = prepare_sweep(config)
    assert prepared.metric == "val_cka"
    assert sorted(read) == sorted([one.uri, two.uri])
    drawn = build_trial_config(config, {"embeddings.one.weight": 0.25}, name="trial", runs=str(tmp_path))
    assert drawn.sources.embeddings["one"].weight == 0.25
    for key, values in (("embeddings.one.responses", (one.uri, two.uri)), ("embeddings", ({},))):
        with pytest.raises(InputError, match=f"a sweep cannot draw '{key}'; its trials share it"):
            prepare_sweep(validate(search, {**data, "space": {key: {"choice": values}}}, "the test"))
    unknown = {**data, "space": {"embeddings.three.weight": {"uniform": (1, 2)}}}
    with pytest.raises(InputError, match=r"space\.embeddings\.three\.weight"):
        prepare_sweep(validate(search, unknown, "the test"))


@pytest.mark.parametrize("teacher", [None, {"classical": True}])
def test_every_term_reaches_every_parameter(
    manifest: Manifest, tmp_path: Path, cached: Callable[..., Any], teacher: dict[str, Any] | None
) -> None:
    """Training on several workers needs it. Teachers may have names that torch uses itself."""
    _, made = cached(layer="tokens")
    relational = {"loss": {"embedding_relational": {}}}
    runs: list[dict[str, Any]] = [
        {"loss": {"embedding_cosine": {}}, "prefixes": (8, 16), "projection": "mlp"},
        {**relational, "prefixes": (8,)},
        {"loss": {"embedding_relational": {}, "tokens": {}}},
        {"loss": {"embedding_cosine": None, "tokens": {}}},
    ]
    for keys in runs if teacher else runs[:3]:  # the last leaves an encoder's embedding alone
        config = config_of(manifest, tmp_path, "all", {"values": {"responses": made.uri}}, teacher=teacher, **keys)
        spec = prepare_run(config)
        model = spec.build_model().train()
        training, _ = build_streams(spec, manifest, 0, 1)
        batch = next(training.training_epoch(0, seed=0, augment=config.data.augment))
        spec.build_task().loss(model, batch).loss.backward()
        assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_prefixes_of_the_embedding_predict_the_teacher_by_themselves(
    manifest: Manifest, tmp_path: Path, cached: Callable[..., Any]
) -> None:
    """The loss is the mean over the whole embedding and its prefixes, each with a projection of its own.

    Projections see the embedding with its dimensions centered over the batch and of unit variance.
    """
    _, made = cached()
    teachers = {"a": {"responses": made.uri}}
    _, (learner, spec, found) = learn(config_of(manifest, tmp_path, "nested", teachers, prefixes=(4, 16)))
    assert spec.card.prefixes == (4, 16)
    assert {"val_cka", "val_cka_a", "val_cka_4", "val_cka_16"} <= found[-1].keys()
    training, validation = build_streams(spec, manifest, 0, 1)
    batch = next(training.training_epoch(0, seed=0, augment=spec.config.data.augment))
    learner.model.train()
    own = learner.model(batch.student.float()).embeddings[0].embedding
    heads = learner.model.embedding_heads
    seen = (own - own.mean(0)) / (own.var(0, correction=0) + 1e-5).sqrt()
    teacher = spec.build_task().embeddings.answer(batch)[0]["a"]
    expected = [
        1 - torch.nn.functional.cosine_similarity(head["to_a"](seen[:, :length]), teacher).mean()
        for length, head in zip((own.shape[1], 4, 16), (heads.embeddings, *heads.nested), strict=True)
    ]
    torch.manual_seed(0)
    got = spec.build_task().loss(learner.model, batch).loss
    torch.testing.assert_close(got, torch.stack(expected).mean())
    pairs = []
    with torch.inference_mode():
        for each in validation.exact_pass(padded=False):
            pairs.append((learner.shipped(each.student)[:, :4].double(), each.embeddings["a"].double()))
    x, y = (torch.cat(each) - torch.cat(each).mean(0) for each in zip(*pairs, strict=True))
    alike = (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert found[-1]["val_cka_4"] == pytest.approx(float(alike), rel=1e-4)


def test_a_resumed_run_remembers_each_teacher_s_embeddings_of_earlier_tiles(
    manifest: Manifest, tmp_path: Path, cached: Callable[..., Any]
) -> None:
    """Its losses equal those of a run that never stopped."""
    (_, one), (_, two) = cached(0), cached(1)
    teachers = {"one": {"responses": one.uri}, "two": {"responses": two.uri}}
    config = config_of(manifest, tmp_path, "queues", teachers, loss={"embedding_contrastive": {"queue": 10}})
    spec, cpu = prepare_run(config), torch.device("cpu")
    training, _ = build_streams(spec, manifest, 0, 1)
    batch = next(training.training_epoch(0, seed=0, augment=config.data.augment))

    def steps(learner: Learner, task: TrainingTask, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            torch.manual_seed(len(losses))
            learner.optimizer.zero_grad()
            loss = task.loss(learner.model.train(), batch).loss
            loss.backward()
            learner.optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    through, task = build_learner(spec, manifest, cpu), spec.build_task()
    steps(through, task, 2)
    through.task_state = gather_task_state(task, 0, 1)
    assert {name: len(rows) for name, rows in through.task_state.items()} == {"0.queue.one": 8, "0.queue.two": 8}
    save_checkpoint(str(tmp_path), through, spec.card)
    resumed, again = build_learner(spec, manifest, cpu), spec.build_task()
    restore_checkpoint(str(tmp_path), resumed)
    load_task_state(again, resumed.task_state, 0)
    assert steps(resumed, again, 3) == steps(through, task, 3)


def test_nuclei_and_embeddings_are_learned_together(
    manifest: Manifest, tmp_path: Path, cached: Callable[..., Any]
) -> None:
    _, made = cached()
    config = config_of(manifest, tmp_path, "both", {"a": {"responses": made.uri}}, teacher={"classical": True})
    assert set(config.loss.terms) == {"soft_cross_entropy", "embedding_cosine"}
    losses, (_, spec, found) = learn(config)
    assert spec.card.kind == "segmentation"
    assert losses[1] < losses[0]
    assert "val_dice" in found[-1]


def test_cached_tokens_are_those_of_the_view_that_is_shown(manifest: Manifest, cached: Callable[..., Any]) -> None:
    """A stored token is off by at most 1/254 of the largest magnitude in its tile."""
    flips = {"flips": True}
    folder, made = cached(layer="tokens", views=2, augment=flips)
    teacher = load_teacher(Teacher(model=folder), manifest.header.mpp, STORAGE)
    source = TileSource(manifest.uri, manifest.header.digest, STORAGE, embeddings=(("a", made.header.at(made.uri)),))
    stream = TileStream(
        manifest=manifest,
        source=source,
        split="",
        only=np.arange(8),
        views=Views(64),
        batch_size=8,
        worker=0,
        workers=1,
    )
    for epoch in (0, 1):
        (batch,) = stream.training_epoch(epoch, seed=0, augment=Augment(flips=False))
        assert teacher.features is not None
        expected, maps = teacher.features.respond_with_maps(batch.student, ("tokens",))
        torch.testing.assert_close(batch.embeddings["a"], expected, rtol=2**-11, atol=1e-6)
        largest = maps["tokens"].abs().amax((1, 2, 3), keepdim=True)
        assert ((batch.tokens["a"] - maps["tokens"]).abs() <= largest / 254 + 1e-6).all()
        (turned,) = stream.training_epoch(epoch, seed=0, augment=Augment(flips=True))
        assert torch.equal(turned.index, batch.index)
        assert torch.equal(turned.embeddings["a"], batch.embeddings["a"])
        for slot in range(8):  # the run's own flips turn tile and tokens alike
            (how,) = (
                number
                for number, tile in enumerate(symmetries(batch.student[slot]))
                if torch.equal(tile, turned.student[slot])
            )
            assert torch.equal(symmetries(batch.tokens["a"][slot])[how], turned.tokens["a"][slot])


def test_what_cannot_be_learned_is_refused(manifest: Manifest, tmp_path: Path, cached: Callable[..., Any]) -> None:
    _, made = cached()
    teachers = {"a": {"responses": made.uri}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"loss": {"tokens": {}}}, "have no patch tokens"),
        ({"loss": {"cross_entropy": {}}}, "an encoder has no classes|compares with a teacher"),
        ({"loss": {"soft_cross_entropy": {}}}, "compares with a teacher, and this job has none"),
    ]
    for keys, said in cases:
        with pytest.raises(InputError, match=said):
            prepare_run(config_of(manifest, tmp_path, "refused", teachers, **keys))
    for keys, said in [
        ({"prefixes": (8, 8)}, "give each length once"),
        ({"projection": "mlp", "loss": {"embedding_relational": {}}}, "no term of loss compares embeddings through"),
        ({"prefixes": (8,), "loss": {"tokens": {}}}, "loss has none; leave them out"),
        ({"prefixes": (4096,)}, r"prefixes has 4096, and the embedding of csat_tiny has \d+ dimensions"),
        ({"encoder": made.uri, "student": {**NETWORK, "weights": "w.safetensors"}}, "both bring pretrained weights"),
    ]:
        with pytest.raises(InputError, match=said):
            prepare_run(config_of(manifest, tmp_path, "refused", teachers, **keys))
    _, with_tokens = cached(2, layer="tokens")
    with pytest.raises(InputError, match=r"loss\.tokens alone does not train the embedding"):
        prepare_run(
            config_of(manifest, tmp_path, "refused", {"a": {"responses": with_tokens.uri}}, loss={"tokens": {}})
        )
    with pytest.raises(InputError, match="no teacher is named"):
        config_of(manifest, tmp_path, "refused", {})
    with pytest.raises(InputError, match="set exactly one of responses"):
        config_of(manifest, tmp_path, "refused", {"a": {}})
    _, views = cached(0, views=2, augment={"flips": True})
    with pytest.raises(InputError, match=r"embeddings\.a and embeddings\.b are of differing views"):
        prepare_run(config_of(manifest, tmp_path, "refused", {**teachers, "b": {"responses": views.uri}}))
    asked = {"tiles": manifest.uri, "teacher": {"classical": True}, "output": str(tmp_path / "caches")}
    nuclei = cache_responses(validate(CacheConfig, asked, "the test"))
    both = {"teacher": {"classical": True}, "responses": nuclei.uri}
    with pytest.raises(InputError, match=r"embeddings\.b and responses are of differing views"):
        prepare_run(config_of(manifest, tmp_path, "refused", {"b": {"responses": views.uri}}, **both))
