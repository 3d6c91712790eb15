"""Figures of embeddings against scikit-learn, croma, and embeddings whose figures are known."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pandas
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from histill.evaluate.bootstrap import bootstrap_metrics, percentile_interval
from histill.evaluate.representation import linear_probe
from histill.evaluate.representation.embeddings import Embeddings, mean_by_class
from histill.evaluate.representation.few_shot import decide_by_class_means, draw_support
from histill.evaluate.representation.judge import judge_embeddings
from histill.evaluate.representation.linear_probe import STRENGTHS, fit_probe
from histill.evaluate.representation.neighbors import find_neighbors, vote
from histill.evaluate.representation.retrieval import retrieve
from histill.evaluate.representation.robustness_index import count_neighbors, have_shared_classes

pytestmark = pytest.mark.unit

CLASSES, NAMES = 3, ("a", "b", "c")


def embed(seed: int, tiles: int = 90, cases: int = 9, *, clear: float = 1.0, width: int = 6) -> Embeddings:
    """Tiles of three classes, of which each case has all: more apart the more `clear`, on axes of unlike scale."""
    random = np.random.default_rng(seed)
    labels, case = np.arange(tiles) % CLASSES, np.arange(tiles) // CLASSES % cases
    scale = 10.0 ** np.arange(width) / 1000
    values = random.normal(0, 1, (tiles, width)) + 0.4 * random.normal(0, 1, (cases, width))[case]
    values[:, :CLASSES] += clear * np.eye(CLASSES)[labels]
    values = (values * scale + 2).astype(np.float32)
    return Embeddings(values, labels, np.array([f"{seed}-{each}" for each in case]))


def everyone(embeddings: Embeddings) -> np.ndarray:
    return np.ones((1, len(embeddings)))


def reference_probe(train: Embeddings, strength: float) -> Any:
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000, tol=1e-8)
    return make_pipeline(StandardScaler(), model).fit(train.values.astype(float), train.labels)


@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 2], [1, 2]])
def test_the_probe_is_scikit_learns_at_the_strength_that_val_chooses(classes: list[int]) -> None:
    train, val, held_out = (embed(seed, clear=1.5) for seed in (0, 1, 2))
    train = train.take(np.isin(train.labels, classes))
    scores = {
        strength: balanced_accuracy_score(val.labels, reference_probe(train, strength).predict(val.values))
        for strength in STRENGTHS
    }
    probe = fit_probe(train, NAMES, val)
    assert scores[probe.strength] == max(scores.values())
    logits, expected = probe.logits(held_out.values) / probe.scale, reference_probe(train, probe.strength)
    shares = np.exp(logits - logits.max(1, keepdims=True).clip(-1e3))
    np.testing.assert_allclose(
        (shares / shares.sum(1, keepdims=True))[:, classes], expected.predict_proba(held_out.values), atol=2e-3
    )
    assert (logits.argmax(1) == expected.predict(held_out.values)).mean() > 0.98
    assert logits.shape == (90, CLASSES)


def test_without_val_whole_cases_choose() -> None:
    """Markers of the cases tell the class of a case that was seen: only folds of whole cases see through that."""
    random = np.random.default_rng(0)
    case = np.repeat(np.arange(12), 8)
    labels = case % 2
    marker = np.eye(12, dtype=np.float32)[case] * 5  # the case, and with it the class, of a tile
    signal = (labels * 2.0 - 1)[:, None] + random.normal(0, 2.5, (96, 1))
    train = Embeddings(np.concatenate([signal, marker], 1).astype(np.float32), labels, case.astype(str))
    probe = fit_probe(train, ("a", "b"))
    unseen = Embeddings(
        np.concatenate([(labels * 2.0 - 1)[:, None], 0 * marker], 1).astype(np.float32), labels, case.astype(str)
    )
    assert probe.strength < 0.1  # strong enough a penalty that markers do not drown the signal
    assert (probe.logits(unseen.values).argmax(1) == labels).all()


def log_loss_of(logits: np.ndarray, labels: np.ndarray) -> float:
    found = logits - logits.max(1, keepdims=True)
    found -= np.log(np.exp(found).sum(1, keepdims=True))
    return -float(found[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("strength", [1e-5, 10.0])
def test_whatever_the_penalty_probabilities_say_how_often_the_probe_is_right(
    strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale found on folds is about as good for unseen cases as the best one for these."""
    monkeypatch.setattr(linear_probe, "STRENGTHS", (strength,))
    train, held_out = embed(0, clear=1.5), embed(1, 300, 30, clear=1.5)
    probe = fit_probe(train, NAMES)
    plain = probe.logits(held_out.values) / probe.scale
    best = min(log_loss_of(plain * scale, held_out.labels) for scale in np.geomspace(1e-3, 1e4, 200))
    found = log_loss_of(plain * probe.scale, held_out.labels)
    assert found < best + 0.1
    assert found < log_loss_of(plain, held_out.labels)


def test_the_scale_is_finite_where_every_decision_is_right() -> None:
    labels = np.arange(90) % CLASSES
    sure = (10 * np.eye(CLASSES)[labels]).astype(np.float32)
    scale = linear_probe._find_scale(sure, labels, balanced=True)
    right = np.exp(-log_loss_of(sure * scale, labels))
    assert 1 - 1 / 90 - 0.02 < right < 1 - 1 / 90 / CLASSES


def test_one_class_alone_is_no_probe() -> None:
    train = embed(0)
    with pytest.raises(ValueError, match="two classes"):
        fit_probe(train.take(train.labels == 1), NAMES)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    train, held_out = embed(0, clear=2.0), embed(1, clear=2.0)
    constant = [
        Embeddings(np.pad(each.values, ((0, 0), (0, 2))), each.labels, each.cases) for each in (train, held_out)
    ]
    logits = fit_probe(constant[0], NAMES).logits(constant[1].values)
    np.testing.assert_allclose(logits, fit_probe(train, NAMES).logits(held_out.values), atol=1e-4)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_neighbors_are_scikit_learns(count: int) -> None:
    train, held_out = embed(0), embed(1)
    reference = KNeighborsClassifier(count, metric="cosine", algorithm="brute").fit(train.values, train.labels)
    neighbors = find_neighbors(held_out, train, count)
    np.testing.assert_array_equal(neighbors, reference.kneighbors(held_out.values, return_distance=False))
    shares = vote(neighbors, train.labels, CLASSES)
    np.testing.assert_allclose(shares, reference.predict_proba(held_out.values))
    judged = judge_embeddings(train, held_out, CLASSES, neighbors=count, shots=(), draws=1).figures()
    expected = balanced_accuracy_score(held_out.labels, reference.predict(held_out.values))
    assert judged["knn_balanced_accuracy"][0] == pytest.approx(expected)


def test_a_tile_of_the_same_case_is_no_neighbor() -> None:
    tiles = embed(0, tiles=30, cases=5)
    neighbors = find_neighbors(tiles, tiles, 26)
    for row, found in enumerate(neighbors):
        others = np.flatnonzero(tiles.cases != tiles.cases[row])
        assert sorted(found[found >= 0].tolist()) == others.tolist()
    assert (neighbors[:, 24:] == -1).all()  # 24 of 30 tiles are of other cases


def test_few_cases_for_each_class_are_drawn_whole() -> None:
    train = embed(0, tiles=120, cases=10)
    seen = set()
    for seed in range(20):
        support = draw_support(train, CLASSES, 2, seed)
        assert support is not None
        taken = train.take(support)
        for label in range(CLASSES):
            cases = set(taken.cases[taken.labels == label].tolist())
            assert len(cases) == 2
            whole = (train.labels == label) & np.isin(train.cases, list(cases))
            assert (taken.labels == label).sum() == whole.sum()
        seen.add(support.tobytes())
    assert len(seen) > 15
    assert draw_support(train, CLASSES, 11, 0) is None
    np.testing.assert_array_equal(draw_support(train, CLASSES, 3, 7), draw_support(train, CLASSES, 3, 7))


def test_the_nearest_class_mean_is_scikit_learns() -> None:
    train, held_out = embed(0), embed(1)
    center = train.values.mean(0)
    reference = NearestCentroid().fit(normalize(train.values - center), train.labels)
    np.testing.assert_array_equal(
        decide_by_class_means(train, held_out.values), reference.predict(normalize(held_out.values - center))
    )


def test_figures_of_draws_are_their_mean_and_deviation() -> None:
    train, held_out = embed(0, clear=2.0), embed(1, clear=2.0)
    found = judge_embeddings(train, held_out, CLASSES, neighbors=3, shots=(1, 10), draws=4).figures()
    each = []
    for seed in range(4):
        support = draw_support(train, CLASSES, 1, seed)
        assert support is not None
        decided = decide_by_class_means(train.take(support), held_out.values)
        each.append(balanced_accuracy_score(held_out.labels, decided))
    assert found["few_shot_1_balanced_accuracy"][0] == pytest.approx(np.mean(each))
    assert found["few_shot_1_balanced_accuracy_sd"][0] == pytest.approx(np.std(each, ddof=1))
    assert math.isnan(found["few_shot_10_balanced_accuracy"][0])  # nine cases are not ten


def test_retrieval_is_scikit_learns_average_precision() -> None:
    tiles = embed(3, clear=0.8)
    similarity = normalize(tiles.values) @ normalize(tiles.values).T
    found = retrieve(tiles)
    for row in range(len(tiles)):
        others = tiles.cases != tiles.cases[row]
        alike = tiles.labels[others] == tiles.labels[row]
        expected = average_precision_score(alike, similarity[row, others])
        assert found.average_precision[row] == pytest.approx(expected, abs=1e-6)
        nearest = alike[np.argsort(-similarity[row, others])]
        assert [found.hits[k][row] for k in (1, 5)] == [nearest[:1].any(), nearest[:5].any()]


def test_retrieval_that_is_known() -> None:
    """Four cases on a circle: the nearest of another case is wrong for one class, and right for the other."""
    angle = np.deg2rad([0, 1, 40, 41, 90, 91])
    values = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    tiles = Embeddings(values, np.array([0, 0, 1, 0, 1, 1]), np.array(["a", "a", "b", "c", "d", "d"]))
    found = retrieve(tiles)
    # 0 deg, case a: 40 (other class), 41 (its own), 90, 91
    assert (found.hits[1][0], found.hits[5][0], found.average_precision[0]) == (0, 1, pytest.approx(1 / 2))
    # 40 deg, case b: 41 (0), 1 (0), 0 (0), 90 (1), 91 (1)
    assert (found.hits[1][2], found.hits[5][2]) == (0, 1)
    assert found.average_precision[2] == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_equally_similar_tiles_count_together_and_a_lonely_class_is_left_out() -> None:
    same = Embeddings(np.ones((6, 2), np.float32), np.array([0, 0, 1, 1, 1, 2]), np.arange(6).astype(str))
    found = retrieve(same)
    np.testing.assert_allclose(found.average_precision[:5], [1 / 5, 1 / 5, 2 / 5, 2 / 5, 2 / 5])
    assert math.isnan(found.average_precision[5])
    assert math.isnan(found.hits[1][5])


def scanned(leak: float, seed: int = 0, tiles: int = 180) -> tuple[Embeddings, np.ndarray]:
    """Embeddings of two classes from three centers that show with the strength `leak`."""
    random = np.random.default_rng(seed)
    labels, case = np.arange(tiles) % 2, np.arange(tiles) // 6
    center = case % 3
    values = random.normal(0, 0.6, (tiles, 8))
    values[:, :2] += np.eye(2)[labels]
    values[:, 2:5] += leak * np.eye(3)[center]
    return Embeddings(values.astype(np.float32), labels, case.astype(str)), np.array(["x", "y", "z"])[center]


@pytest.mark.filterwarnings("ignore:.*support is:RuntimeWarning")  # croma's, of tiles without a neighbor that tells
@pytest.mark.parametrize("leak", [0.0, 0.7, 3.0])
def test_the_robustness_index_is_cromas(leak: float) -> None:
    croma = pytest.importorskip("croma", reason="croma is not installed")
    tiles, centers = scanned(leak)
    manifest = pandas.DataFrame(
        {
            "sample_id": np.arange(len(tiles)).astype(str), "image_path": "-", "label": tiles.labels.astype(str),
            "group_id": tiles.cases, "scanner": centers,
        }
    )  # fmt: skip
    candidates = (3, 5, 11, 21)
    reference = croma.RI.compute(tiles.values, manifest, confounder_column="scanner", k_candidates=candidates)
    found = count_neighbors(tiles, centers, candidates)
    assert found.k == reference.k
    assert found.index(everyone(tiles))[0] == pytest.approx(reference.value, abs=1e-9)
    curve = croma.RI.compute_curve(tiles.values, manifest, confounder_column="scanner", k_values=candidates)
    for k in candidates:
        assert count_neighbors(tiles, centers, (k,)).index(everyone(tiles))[0] == pytest.approx(curve[k], abs=1e-9)


def test_the_robustness_index_falls_as_centers_show() -> None:
    indices = []
    for leak in (0.0, 0.7, 1.5, 3.0):
        tiles, centers = scanned(leak)
        indices.append(count_neighbors(tiles, centers).index(everyone(tiles))[0])
    assert all(more > less for more, less in pairwise(indices))
    assert indices[0] > 0.7
    assert indices[-1] < 0.2


def test_two_centers_must_share_two_classes() -> None:
    assert have_shared_classes(np.array([0, 1, 0, 1]), np.array(["x", "x", "y", "y"]))
    assert not have_shared_classes(np.array([0, 1, 0, 2]), np.array(["x", "x", "y", "y"]))
    assert not have_shared_classes(np.array([0, 1, 0, 1]), np.array(["x"] * 4))


def test_the_mean_by_class_is_the_balanced_accuracy_of_redrawn_tiles() -> None:
    random = np.random.default_rng(0)
    labels, decided = random.integers(0, 4, 60), random.integers(0, 4, 60)
    counts = random.multinomial(60, np.full(60, 1 / 60), size=5)
    found = mean_by_class((labels == decided).astype(float), labels, counts.astype(float))
    for value, count in zip(found, counts, strict=True):
        drawn = np.repeat(np.arange(60), count)
        assert value == pytest.approx(balanced_accuracy_score(labels[drawn], decided[drawn]))


def test_the_interval_is_over_cases() -> None:
    """Three cases of which one is answered wrong throughout: draws of cases have 0 to 3 of it."""
    labels = np.tile([0, 1], 9)
    case = np.repeat(np.arange(3), 6)
    values = np.stack([np.cos(labels * np.pi / 2), np.sin(labels * np.pi / 2)], 1).astype(np.float32)
    held_out = Embeddings(np.where((case == 0)[:, None], values[:, ::-1], values), labels, case.astype(str))
    train = Embeddings(values[:6], labels[:6], np.array(["t"] * 6))
    judged = judge_embeddings(train, held_out, 2, neighbors=3, shots=(), draws=1)
    drawn = bootstrap_metrics(judged, held_out.cases, 500, seed=0)["knn_balanced_accuracy"]
    assert sorted(set(drawn.round(6).tolist())) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    low, high = percentile_interval(drawn, 3)
    assert low <= judged.figures()["knn_balanced_accuracy"][0] <= high


def test_a_better_encoder_is_better_by_every_figure() -> None:
    figures = []
    for clear in (0.3, 4.0):
        train, held_out = (
            Embeddings(normalize(each.values), each.labels, each.cases)
            for each in (embed(seed, clear=clear, width=3) for seed in (0, 1))
        )
        figures.append(judge_embeddings(train, held_out, CLASSES, neighbors=5, shots=(1, 3), draws=3).figures())
    poor, good = figures
    for name in poor:
        if not name.endswith("_sd"):
            assert good[name][0] > poor[name][0], name
