"""Probe a model's encoder: predict held-out tiles with a linear classifier on its embeddings."""

import numpy as np
import torch

from histill.config.common import Split, Storage, Workers
from histill.config.encoder import EncoderFacts
from histill.config.probe import Probe
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.evaluate.evaluator import Evaluator, Examined, check_corrupt
from histill.evaluate.predictions import Predictions
from histill.evaluate.representation.centers import read_centers
from histill.evaluate.representation.embed import Embedder
from histill.evaluate.representation.embeddings import Embeddings
from histill.evaluate.representation.judge import judge_embeddings
from histill.evaluate.representation.linear_probe import fit_probe
from histill.evaluate.representation.subject import load_subject
from histill.tiles.labels import TileLabels
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest


def probe_encoder(
    model: str, held_out: HeldOut, storage: Storage, workers: Workers | None, encoder: EncoderFacts
) -> Examined:
    """Embed the splits of a tile set that are needed, fit a probe, and predict the held-out tiles.

    The encoder stays frozen; `encoder` says how it is read if `model` is a timm folder. Embeds in this process, on a
    GPU if there is one, or as tasks with `workers`. C is chosen in cross-validation over the training cases, or on
    `held_out.probe.val`. Raises InputError if the model's tile size or resolution does not match, two of the splits are
    the same, the training split has fewer than two labels, the validation split lacks one of them, or more tiles are
    undecodable than allowed.
    """
    keys = held_out.probe or Probe()
    _check(held_out, keys)
    manifest = read_manifest(held_out.tiles, storage)
    network, card, digest = load_subject(model, encoder, manifest.header, held_out.tiles, storage)
    classes = _find_classes(manifest, keys.train)
    labels = manifest.labels_among(classes, asked := manifest.rows_of(held_out.split))
    train = _labeled(manifest, keys.train, labels)
    val = _labeled(manifest, keys.val, labels)
    if keys.val is not None and (lacking := set(range(len(classes))) - set(labels[val].tolist())):
        raise InputError(
            f"split {keys.val!r} of {manifest.uri} has no tile of {classes[min(lacking)]!r}, so the probe's C cannot "
            "be chosen on it (held_out.probe.val); leave it out, and folds of the training cases choose.",
            code="label-missing",
        )
    centers = None
    if keys.centers is not None:  # before hours of embedding
        names = manifest.column(keys.centers.by, asked)
        centers = read_centers(keys.centers, names, labels[asked], storage)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    embedder = Embedder(model, held_out.tiles, held_out.batch_size, held_out.max_corrupt, storage, encoder)
    rows = np.unique(np.concatenate([train, val, asked]))
    embedded = embedder.embed_tiles(network, card, manifest, rows, workers)
    check_corrupt(embedded.corrupt, held_out)
    cases = manifest.column("case", embedded.rows)
    everything = Embeddings(embedded.values, labels[embedded.rows], cases)
    learned, chosen, answered = (everything.take(np.isin(embedded.rows, part)) for part in (train, val, asked))
    probe = fit_probe(learned, classes, chosen if len(chosen) else None)
    examiner = Evaluator(network, card, digest, manifest, held_out, storage, None, device, probe)
    there = np.isin(embedded.rows, asked)
    answers = Predictions(
        spec=examiner.outputs,
        rows=embedded.rows[there],
        said=probe.logits(answered.values),
        truth=answered.labels,
        stains=embedded.stains[there],
        corrupt=len(asked) - len(answered),
    )
    if centers is not None:
        centers = centers[np.isin(asked, answers.rows)]
    judgement = judge_embeddings(
        learned, answered, len(classes),
        neighbors=keys.neighbors, shots=keys.shots, draws=keys.draws, centers=centers,
    )  # fmt: skip
    facts: dict[str, float | str] = {
        "width": answered.values.shape[1],
        "train_split": keys.train,
        "train_tiles": len(learned),
        "train_cases": len(np.unique(learned.cases)),
        "C": probe.strength,
        "C_chosen_by": _say_who_chose(keys, len(np.unique(learned.cases))),
    }
    if licenses := {each.license.name if each.license else "not on record" for each in card.taught_by or ()}:
        facts["licenses"] = ", ".join(sorted(licenses))
    if judgement.neighbors is not None:
        facts["robustness_index_k"] = judgement.neighbors.k
    return Examined(examiner, answers, judgement, facts)


def _check(held_out: HeldOut, keys: Probe) -> None:
    if held_out.reference is not None:
        raise InputError(
            "held_out.reference is for models that mark pixels, and an encoder is scored against labels; leave it out.",
            code="option-not-applicable",
        )
    if held_out.split == keys.train:
        raise InputError(
            f"held_out.split is {held_out.split!r}, from which the probe of an encoder learns (held_out.probe.train); "
            "choose two different splits.",
            code="config-conflict",
        )
    if keys.val in (keys.train, held_out.split):
        raise InputError(
            f"held_out.probe.val is {keys.val!r}, which is also learned from or scored, and the probe's C must be "
            "chosen on other tiles; leave it out, and folds of the training cases choose.",
            code="config-conflict",
        )


def _say_who_chose(keys: Probe, cases: int) -> str:
    if keys.val is not None:
        return f"split {keys.val}"
    return f"folds of {keys.train}" if cases > 1 else f"nobody: {keys.train} has a single case"


def _find_classes(manifest: Manifest, split: Split) -> tuple[str, ...]:
    """The labels of a split, ascending. Raises InputError if there are fewer than two."""
    manifest.select(split)  # refuses an empty split
    found = {label for (of, label), _ in manifest.count("split", "label") if of == split}
    classes = tuple(sorted(label for label in found if label is not None))
    if len(classes) < 2:
        said = f"the label {classes[0]!r} alone" if classes else "no labels"
        raise InputError(
            f"split {split!r} of {manifest.uri} has {said}, and the probe of an encoder learns from labels of at least "
            "two classes; ingest labels, or choose another split (held_out.probe.train).",
            code="label-missing",
        )
    return classes


def _labeled(manifest: Manifest, split: Split | None, labels: TileLabels) -> np.ndarray:
    """The manifest rows, int64, of the split's tiles with a known label; none without a split."""
    if split not in manifest.header.splits:
        return np.zeros(0, np.int64)
    rows = manifest.rows_of(split)
    return rows[labels[rows] >= 0]
