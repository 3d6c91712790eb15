"""Prepare a candidate for promotion: score it, export it, and check its lineage."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from histill.artifacts import exports
from histill.artifacts.lineage import state_licenses
from histill.artifacts.overlap import find_seen
from histill.cluster.progress import count_of
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import HeldOut
from histill.evaluate.constant_baseline import score_constant
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.examine import examine
from histill.evaluate.pictures import draw_tiles
from histill.evaluate.predictions import Predictions
from histill.evaluate.raw_tiles import read_cut_tiles
from histill.evaluate.score import Score, compute_score
from histill.evaluate.shown_tiles import spread_tiles
from histill.licenses import License
from histill.registry import versions
from histill.registry.gates import Provenance
from histill.storage.control import json_bytes

EXPORTS_FOLDER = "exports"
_TILES_COMPARED = 16


@dataclass(frozen=True)
class Candidate:
    """A candidate model with its score and its exports."""

    model: str  # its folder
    examiner: Evaluator
    answers: Predictions
    score: Score
    files: dict[str, bytes]  # exported formats: path -> content
    differences: dict[str, float]  # largest logit difference of each exported format, on real tiles


def examine_candidate(model: str, held_out: HeldOut, config: PromoteConfig) -> Candidate:
    """Score the model folder `model` on the held-out tiles, export it, and compare its exports' logits."""
    examined = examine(model, held_out, config.storage, config.workers)
    examiner = examined.examiner
    formats = exports.export_model(examiner.network, examiner.card)
    tiles, cut = read_cut_tiles(examiner, spread_tiles(examiner, _TILES_COMPARED))
    found = exports.measure_differences(examiner.network, formats, tiles, examiner.card, cut)
    score = compute_score(examined, bootstrap_samples=config.gates.bootstrap_samples)
    return Candidate(model, examiner, examined.answers, score, formats, found)


def trace_provenance(
    examiner: Evaluator,
    differences: dict[str, float],
    answers: Predictions | None = None,
    stated: Mapping[str, License] | None = None,
) -> Provenance:
    """Compare the lineage on the model's card with the held-out tiles; with the `stated` licenses of its teachers."""
    card = examiner.card
    seen = find_seen(card, examiner.manifest, examiner.held_out.split, examiner.storage)
    return Provenance(
        missing=tuple(name for name in ("tiles_digest", "train_cases") if not getattr(card, name)),
        seen_cases=seen.cases,
        difference=max(differences.values()),
        seen_tiles=seen.tiles,
        divided=seen.divided,
        unknown=seen.unknown,
        constant=None if answers is None else score_constant(answers),
        taught_by=state_licenses(card, stated or {}),
    )


def collect_evidence(candidate: Candidate, config: PromoteConfig) -> dict[str, bytes]:
    """The files stored beside a version's model, path -> content: score, picture, exported formats, model card."""
    examiner, score, card = candidate.examiner, candidate.score, candidate.examiner.card
    taught_by = state_licenses(card, config.gates.license.stated)
    told = exports.describe_interface(card, score.model_digest, candidate.differences, config.license, taught_by)
    held_out = f"{count_of(score.tiles, 'held-out tile')} of {count_of(score.cases, 'case')}"
    scored_on = f"{held_out} ({score.tiles_digest[:12]}, {score.split})"
    files = {
        **candidate.files,
        **exports.read_preparation(),
        exports.INTERFACE_NAME: json_bytes(told),
        exports.README_NAME: exports.write_readme(card, told, score.figures, scored_on).encode(),
    }
    return {f"{EXPORTS_FOLDER}/{name}": data for name, data in files.items()} | {
        versions.SCORE_PATH: json_bytes(dataclasses.asdict(score)),
        versions.PICTURE_PATH: draw_tiles(examiner, spread_tiles(examiner, config.picture_rows)),
    }
