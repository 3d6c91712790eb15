"""A head that is fitted as a probe answers as scikit-learn's logistic regression on the encoder's features does."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histill.config.common import Storage
from histill.errors import InputError
from histill.evaluate.representation import linear_probe
from histill.evaluate.representation.embeddings import Embeddings
from histill.models.classifiers import Classifier, build_classifier
from histill.outputs import OutputSpec
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.tiles.manifest import Manifest
from histill.train import coverage, head_probe
from histill.train.head_probe import find_head, fit_head, fit_linear

pytestmark = pytest.mark.unit

OUTPUTS = OutputSpec("classification", ("stroma", "tumour"))
C = 0.01


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory, tile_set: Callable[..., Manifest]) -> Manifest:
    return tile_set(tmp_path_factory.mktemp("labeled"), tiles=24, tile_px=64, labels=True)


@pytest.fixture(autouse=True)
def nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "STRENGTHS", (C,))
    monkeypatch.setattr(linear_probe, "_find_scale", lambda *_: 1.0)


def stream(manifest: Manifest, worker: int = 0, workers: int = 1) -> TileStream:
    return TileStream(
        manifest=manifest,
        source=TileSource(manifest.uri, manifest.header.digest, Storage()),
        split="train",
        labels=manifest.labels_of(OUTPUTS, manifest.rows_of("train")),
        views=Views(64),
        batch_size=6,
        worker=worker,
        workers=workers,
    )


def model_of(encoder: str) -> Classifier:
    torch.manual_seed(0)
    return build_classifier(encoder, 2, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def probe(balanced: bool) -> LogisticRegression:
    weights = "balanced" if balanced else None
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, class_weight=weights, max_iter=1000))


@pytest.mark.parametrize("encoder", ["csat_tiny", "resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_the_model_answers_tiles_as_scikit_learn_answers_its_features(encoder: str, labeled: Manifest) -> None:
    model, training = model_of(encoder), stream(labeled)
    fit_head(model, OUTPUTS, training, balanced=True)
    tiles = torch.cat([batch.student[batch.valid] for batch in training.exact_pass()])
    rows = np.concatenate([batch.index[batch.valid].numpy() for batch in training.exact_pass()])
    assert training.labels is not None
    seen: list[torch.Tensor] = []
    find_head(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        found = model(tiles).softmax(1).numpy()
    features = seen[0].double().numpy()
    expected = probe(balanced=True).fit(features, training.labels[rows]).predict_proba(features)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def tiles() -> Embeddings:
    """Of three unequal classes, at very different scales, one feature of no variance."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [40, 12, 8])
    centers = random.normal(0, 1, (3, 5))
    values = (random.normal(0, 1, (60, 5)) + centers[labels]) * [1, 100, 0.01, 5, 0] + [0, 1000, 3, -5, 7]
    return Embeddings(values.astype(np.float32), labels, np.array([f"case-{row % 10}" for row in range(60)]))


@pytest.mark.parametrize("balanced", [True, False])
def test_the_standardization_is_folded_into_the_layer(tiles: Embeddings, balanced: bool) -> None:
    weight, bias = fit_linear(tiles, OutputSpec("classification", ("a", "b", "c")), balanced=balanced)
    values = tiles.values.astype(np.float64)
    logits = torch.from_numpy(values @ weight.T + bias)
    expected = probe(balanced).fit(values, tiles.labels).predict_proba(values)
    np.testing.assert_allclose(logits.softmax(1), expected, atol=1e-5)


def test_the_scale_of_the_probe_is_folded_in_too(tiles: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_probe, "_find_scale", lambda *_: 7.0)
    names = ("a", "b", "c")
    weight, bias = fit_linear(tiles, OutputSpec("classification", names), balanced=True)
    expected = linear_probe.fit_probe(tiles, names).logits(tiles.values)
    np.testing.assert_allclose(tiles.values.astype(np.float64) @ weight.T + bias, expected, atol=1e-4)


def test_of_several_labels_each_is_a_regression_of_its_own(tiles: Embeddings) -> None:
    labels = np.stack([tiles.labels == 0, tiles.labels < 2, tiles.labels < 3, tiles.labels > 3], 1).astype(np.int64)
    outputs = OutputSpec("classification", ("a", "b", "always", "never"), multi_label=True)
    weight, bias = fit_linear(replace(tiles, labels=labels), outputs, balanced=False)
    values = tiles.values.astype(np.float64)
    found = torch.from_numpy(values @ weight.T + bias).sigmoid().numpy()
    for place in (0, 1):
        expected = probe(balanced=False).fit(values, labels[:, place]).predict_proba(values)[:, 1]
        np.testing.assert_allclose(found[:, place], expected, atol=1e-5)
    np.testing.assert_allclose(found[:, 2:], [[60.5 / 61, 0.5 / 61]] * 60)


def test_each_worker_embeds_its_part_and_all_get_the_weights_of_the_first(
    labeled: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = model_of("csat_tiny")
    whole = head_probe._embed_tiles(alone, stream(labeled))
    fit_head(alone, OUTPUTS, stream(labeled), balanced=True)
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(head_probe, "sum_over_workers", lambda value: sums.append(value) or value)
    for worker in range(3):
        head_probe._embed_tiles(model_of("csat_tiny"), stream(labeled, worker, 3))
    assert (torch.stack([each[:, -1] for each in sums]).sum(0) == 1).all()
    np.testing.assert_allclose(sum(sums)[:, :-1].numpy(), whole.values, atol=1e-5)

    head, other = find_head(alone), model_of("csat_tiny")
    monkeypatch.setattr(head_probe, "sum_over_workers", lambda value: value)
    sent = iter([head.weight.detach(), head.bias.detach()])
    monkeypatch.setattr(coverage, "sum_over_workers", lambda mine: next(sent) + mine)
    fit_head(other, OUTPUTS, stream(labeled, 1, 3), balanced=True)
    assert torch.equal(find_head(other).weight, head.weight)
    assert torch.equal(find_head(other).bias, head.bias)


def test_a_large_training_set_is_thinned_out(labeled: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_probe, "MOST_TILES", 7)
    found = head_probe._embed_tiles(model_of("csat_tiny"), stream(labeled))
    assert len(found) == 6  # of 16, every third
    assert set(found.labels.tolist()) == {0, 1}


def test_a_last_layer_that_is_not_linear_is_refused() -> None:
    with pytest.raises(InputError, match=r"the last layer of resnetv2_50 is not linear.*; set head=fresh"):
        find_head(model_of("resnetv2_50"))
