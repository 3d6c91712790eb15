"""How well embeddings tell the classes of tiles of unseen cases: a linear probe at fractions of the labeled cases."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from experiments.common.tile_sets import STORAGE
from histill.artifacts.model_folder import load, resolve
from histill.evaluate.bootstrap import bootstrap_metrics, percentile_interval
from histill.evaluate.representation.embed import Embedder
from histill.evaluate.representation.embeddings import Embeddings
from histill.evaluate.representation.judge import Judgement
from histill.evaluate.representation.linear_probe import fit_probe
from histill.stream.responses import decode_embedding
from histill.teachers.cache import read_header
from histill.teachers.shard_responses import read_first_responses
from histill.tiles.manifest import Manifest
from histill.tiles.shards import shards_of
from histill.tiles.subsample import subsample_cases
from histill.tiles.whole_table import read_table

SAMPLES = 1000  # of the test cases
FIGURE = "balanced_accuracy"


@dataclass(frozen=True)
class Probed:
    """The balanced accuracy of one probe on the test tiles, and its 95 % interval over their cases."""

    value: float
    low: float
    high: float
    strength: float  # C of the logistic regression


def probe(values: np.ndarray, tiles: Manifest, fraction: float, seed: int) -> Probed:
    """Fit the product's probe to the embeddings of a fraction of the training cases; its figures on the test cases.

    `values`, float32 [tiles, D], are those of all tiles in the order of the manifest. The cases are those that a
    fine-tuning with the same fraction and seed learns from; C is chosen by folds of these.
    """
    split, label = (np.array(read_table(tiles)[name].to_pylist()) for name in ("split", "label"))
    classes = tuple(sorted(set(label)))
    everything = Embeddings(values, np.searchsorted(classes, label), np.array(read_table(tiles)["case"].to_pylist()))
    chosen = sorted(subsample_cases(tiles, "train", fraction, seed))
    train, test = (
        everything.take((split == "train") & np.isin(everything.cases, chosen)),
        everything.take(split == "test"),
    )
    found = fit_probe(train, classes)
    right = (found.logits(test.values).argmax(1) == test.labels).astype(np.float64)
    answers = Judgement(test.labels, {FIGURE: right}, None)
    drawn = bootstrap_metrics(answers, test.cases, SAMPLES, seed=0)[FIGURE]
    low, high = percentile_interval(drawn, len(np.unique(test.cases)))
    return Probed(float(answers.figures()[FIGURE][0]), low, high, found.strength)


def probe_once(kept: Path, values: np.ndarray, tiles: Manifest, fraction: float, seed: int) -> Probed:
    """`probe`, kept in the file `kept`."""
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(probe(values, tiles, fraction, seed))))
    return Probed(**json.loads(kept.read_text()))


def embed_tiles(model: str, tiles: Manifest) -> np.ndarray:
    """The embeddings of all tiles by a run or model folder, float32 [tiles, D]."""
    folder = resolve(model, STORAGE)
    network, card, _ = load(folder, STORAGE)
    embedder = Embedder(folder, tiles.uri, 32, 0, STORAGE)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = np.arange(tiles.header.tiles)
    return embedder.embed_tiles(network.to(device), card, tiles, rows, None).values


def read_embeddings(cache: str, tiles: Manifest) -> np.ndarray:
    """The cached embeddings of all tiles, float32 [tiles, D]."""
    header = read_header(cache, STORAGE)
    cached, width = header.at(cache), header.width
    assert width is not None
    found = [read_first_responses(cached, shard, STORAGE) or [] for shard in shards_of(tiles)]
    return np.stack([decode_embedding(each, width) for part in found for each in part])
