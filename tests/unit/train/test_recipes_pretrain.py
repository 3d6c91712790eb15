"""Pretraining on embeddings: what is cached and what is live teach the same, and the product is an encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histill.artifacts.model_folder import ModelCard, build, load, save
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.finetune_student import FinetuneConfig
from histill.config.load import validate
from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.teachers import cache as caching
from histill.teachers.cache import CachedResponses, cache_responses
from histill.tiles.manifest import Manifest, read_manifest
from histill.train.build import build_learner, build_streams
from histill.train.loop import Hooks, train
from histill.train.prepare import prepare_run

pytestmark = pytest.mark.unit

NETWORK = {"encoder": "csat_tiny", "decoder_channels": (16, 16, 8, 8, 8), "size_px": 32}
STORAGE = Storage()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("tiles"), tiles=24, tile_px=64, labels=True)


def encoder_folder(folder: Path, manifest: Manifest, seed: int) -> str:
    """A random encoder as a model folder, which is a teacher of embeddings."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    card = ModelCard(
        kind="encoder",
        encoder="resnet10t",
        decoder_channels=(),
        classes=(),
        width=64,
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
    save(str(folder), model, card.model_copy(update={"width": model(torch.zeros(1, 3, 64, 64)).shape[1]}))
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
    """Losses of each epoch, and the learner."""
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
        # these look at differences between a random teacher's embeddings, which are alike but for a few thousandths
        (("embedding_relational", "embedding_contrastive"), 1e-2),
    ],
)
def test_cached_and_live_give_the_same_losses(
    manifest: Manifest, tmp_path: Path, cached: Callable[..., Any], terms: tuple[str, ...], error: float
) -> None:
    folder, made = cached()
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
    with pytest.raises(InputError, match="no teacher is named"):
        config_of(manifest, tmp_path, "refused", {})
    with pytest.raises(InputError, match="set exactly one of responses"):
        config_of(manifest, tmp_path, "refused", {"a": {}})
    _, views = cached(0, views=2, augment={"flips": True})
    with pytest.raises(InputError, match=r"embeddings\.a and embeddings\.b are of differing views"):
        prepare_run(config_of(manifest, tmp_path, "refused", {**teachers, "b": {"responses": views.uri}}))
