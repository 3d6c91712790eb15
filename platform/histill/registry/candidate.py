"""Prepare a candidate for promotion: score it, export it, and check its lineage."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from histill.artifacts.formats.export import check_packages, is_calibrated
from histill.artifacts.formats.made import Export, ListedFormat
from histill.artifacts.hub_metadata import ScoredTiles
from histill.artifacts.lineage import state_licenses
from histill.artifacts.model_folder import read_card
from histill.artifacts.overlap import find_seen
from histill.artifacts.package import package_exports, read_own_files
from histill.artifacts.signature import check_signing_key
from histill.artifacts.training_tiles import read_training_tiles
from histill.cluster.progress import count_of
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.evaluate.constant_baseline import score_constant
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.examine import examine
from histill.evaluate.export_model import export_compared
from histill.evaluate.pictures import draw_tiles
from histill.evaluate.predictions import Predictions
from histill.evaluate.score import Score, compute_score
from histill.evaluate.shown_tiles import spread_tiles
from histill.licenses import License
from histill.registry.evidence import EXPORTS_FOLDER, PICTURE_PATH, SCORE_PATH
from histill.registry.gates import Provenance
from histill.registry.quantized import judge_quantized
from histill.storage.control import json_bytes
from histill.tiles.manifest_file import read_manifest


@dataclass(frozen=True)
class Candidate:
    """A candidate model with its score and its exports."""

    model: str  # its folder
    examiner: Evaluator
    answers: Predictions
    score: Score
    exports: tuple[Export, ...]

    @property
    def formats(self) -> tuple[ListedFormat, ...]:
        """What was made of it and what was not, as listed."""
        return tuple(each.listed for each in self.exports)


def examine_candidate(model: str, held_out: HeldOut, config: PromoteConfig) -> Candidate:
    """Score the model folder `model` on the held-out tiles, export it, and compare its exports' logits."""
    check_packages(config.formats)
    if config.signing_key is not None:
        check_signing_key(config.signing_key)
    training_tiles = _read_training_tiles(model, held_out, config) if is_calibrated(config.formats) else None
    examined = examine(model, held_out, config.storage, config.workers)
    examiner = examined.examiner
    made = export_compared(examiner, config.formats, training_tiles)
    exports = tuple(judge_quantized(each, examined, config.gates) for each in made)
    score = compute_score(examined, bootstrap_samples=config.gates.bootstrap_samples)
    return Candidate(model, examiner, examined.answers, score, exports)


def _read_training_tiles(model: str, held_out: HeldOut, config: PromoteConfig) -> Tensor:
    """The tiles to calibrate quantized formats on, read before the candidate is scored, which takes longer."""
    card = read_card(model, config.storage)
    if held_out.probe is not None and card.kind != "encoder":
        raise InputError(
            "held_out.probe scores embeddings, and a quantized model that is no encoder has none; leave it out, or "
            "leave int8 out of formats.",
            code="option-not-applicable",
        )
    manifest = read_manifest(held_out.tiles, config.storage)
    return read_training_tiles(card, manifest, held_out.split, config.calibration_tiles, config.storage)


def trace_provenance(
    examiner: Evaluator,
    formats: Iterable[ListedFormat] = (),
    answers: Predictions | None = None,
    stated: Mapping[str, License] | None = None,
) -> Provenance:
    """Compare the lineage on the model's card with the held-out tiles; with the `stated` licenses of its teachers."""
    card = examiner.card
    seen = find_seen(card, examiner.manifest, examiner.held_out.split, examiner.storage)
    return Provenance(
        missing=tuple(name for name in ("tiles_digest", "train_cases") if not getattr(card, name)),
        seen_cases=seen.cases,
        difference=float(np.max(_list_differences(formats), initial=0)),
        seen_tiles=seen.tiles,
        divided=seen.divided,
        unknown=seen.unknown,
        constant=None if answers is None else score_constant(answers),
        taught_by=state_licenses(card, stated or {}),
    )


def _list_differences(formats: Iterable[ListedFormat]) -> list[float]:
    """Those of the formats that must answer like the model; a quantized one is scored in its own right."""
    return [each.difference for each in formats if each.difference is not None and each.rounded is None]


def collect_evidence(candidate: Candidate, config: PromoteConfig) -> dict[str, bytes]:
    """The files stored beside a version's model, path -> content: score, picture, exported formats, model card."""
    examiner, score, card = candidate.examiner, candidate.score, candidate.examiner.card
    held_out = f"{count_of(score.tiles, 'held-out tile')} of {count_of(score.cases, 'case')}"
    files = package_exports(
        candidate.exports, card, score.model_digest, read_own_files(candidate.model, config.storage),
        name=config.registered_name, license=config.license,
        taught_by=state_licenses(card, config.gates.license.stated), figures=score.figures,
        scored=ScoredTiles(held_out, score.split, score.tiles_digest), signing_key=config.signing_key,
    )  # fmt: skip
    return {f"{EXPORTS_FOLDER}/{name}": data for name, data in files.items()} | {
        SCORE_PATH: json_bytes(dataclasses.asdict(score)),
        PICTURE_PATH: draw_tiles(examiner, spread_tiles(examiner, config.picture_rows)),
    }
