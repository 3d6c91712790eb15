"""A candidate against the champion: scored alike, judged by the gates, the alias moved last."""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histill.artifacts import exports, model_folder
from histill.artifacts.model_folder import ModelCard
from histill.config.common import Storage, Tracking
from histill.config.scoring import HeldOut, PromoteConfig
from histill.errors import InputError
from histill.evaluate.answers import Answers
from histill.evaluate.cut_tiles import read_cut_tiles
from histill.evaluate.examiner import Examiner, all_answers
from histill.evaluate.intervals import paired_difference
from histill.evaluate.pictures import spread_tiles, tiles_picture
from histill.evaluate.score import Score, column, score_of
from histill.registry import versions
from histill.registry.gates import GateResult, Provenance, Rivalry, judge
from histill.registry.ledger import before, begin_term, read_ledger
from histill.registry.server import connect, log_file, required_server_uri, server_errors
from histill.registry.settled import settled_reference
from histill.tiles.manifest import case_digests

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROMOTED, REFUSED, ALREADY, ROLLED_BACK = "promoted", "refused", "already champion", "rolled back"
WOULD = {PROMOTED: "would be promoted", REFUSED: "would be refused"}
DECISION_PATH = "decision.json"
EXPORTS_FOLDER = "exports"
_TILES_COMPARED = 16


@dataclass(frozen=True)
class Promotion:
    """What became of a candidate; `former` is the champion's version before.

    `version` is None where nothing was registered. A candidate that is the champion already, and a former champion that
    comes back, are not judged.
    """

    registered_name: str
    version: str | None
    decision: str
    former: str | None
    score: Score | None = None
    rivalry: Rivalry | None = None
    gates: tuple[GateResult, ...] = ()
    differences: dict[str, float] = dataclasses.field(default_factory=dict)  # of the exported formats
    copied: str | None = None  # version in the production registry

    @property
    def ok(self) -> bool:
        """Whether the candidate is champion now, or would be."""
        return self.decision not in (REFUSED, WOULD[REFUSED])

    def values(self) -> dict[str, Any]:
        """As plain values, without the slides."""
        found = dataclasses.asdict(self)
        if found["score"] is not None:
            del found["score"]["by_slide"]
        return found


@dataclass(frozen=True)
class _Candidate:
    """A model and what was found out about it."""

    model: str  # its folder
    examiner: Examiner
    answers: Answers
    score: Score
    files: dict[str, bytes]  # path -> content of the formats it is exported in
    differences: dict[str, float]


def promote(config: PromoteConfig) -> Promotion:
    """Score the candidate and the champion on the same held-out tiles, register the candidate, and make it the champion
    when it passes every gate; the former champion becomes `previous`.

    The version carries the decision and each gate's figures as tags, its run `decision.json`. With `rollback` the
    former champion comes back without being judged. Of two promotions at once one is told to judge again.

    Raises:
        InputError: no registry, no such model, no former champion, held-out tiles unlike the model's.
        HistillError: another promotion moved the champion meanwhile.
    """
    uri = required_server_uri(config.tracking)
    if config.copy_to is not None:
        required_server_uri(Tracking(uri=config.copy_to))
    client = connect(uri)
    if config.rollback:
        with server_errors(uri):
            return _copied(_rolled_back(client, config), config)
    assert config.model is not None
    assert config.held_out is not None
    with tempfile.TemporaryDirectory(prefix="histill-") as folder:
        model = model_folder.resolve(
            versions.fetch_model(config.model, config.tracking, _made(folder, "candidate")), config.storage
        )
        held_out = settled_reference(config.held_out, config.tracking, folder, config.storage)
        candidate = _examined(model, held_out, config)
        if config.dry_run:
            former = versions.champion(config.registered_name, config.tracking)
            promotion = _judged(candidate, former, None, held_out, config, _made(folder, "champion"))
            return dataclasses.replace(promotion, decision=WOULD[promotion.decision])
        version = versions.register(
            model, config.registered_name, _evidence(candidate, config), config.tracking, config.storage,
            candidate.score.model_digest,
        )  # fmt: skip
        with server_errors(uri):
            ledger = read_ledger(client, config.registered_name)
        if version == ledger.champion:
            promotion = Promotion(config.registered_name, version, ALREADY, version, candidate.score)
            return _copied(promotion, config)
        promotion = _judged(candidate, ledger.champion, version, held_out, config, _made(folder, "champion"))
    with server_errors(uri):
        _record(client, promotion, config)
        if promotion.ok:
            begin_term(client, config.registered_name, ledger, version)
    return _copied(promotion, config)


def _made(folder: str, name: str) -> Path:
    made = Path(folder, name)
    made.mkdir()
    return made


def _examined(model: str, held_out: HeldOut, config: PromoteConfig) -> _Candidate:
    examiner = Examiner.load(model, held_out, config.storage)
    answers = all_answers(examiner, model, config.workers)
    formats = exports.exported(examiner.network, examiner.card)
    tiles, cut = read_cut_tiles(examiner, spread_tiles(examiner, _TILES_COMPARED))
    found = exports.differences(examiner.network, formats, tiles, examiner.card, cut)
    score = score_of(examiner, answers, draws=config.gates.draws)
    return _Candidate(model, examiner, answers, score, formats, found)


def _judged(
    candidate: _Candidate,
    champion: str | None,
    version: str | None,
    held_out: HeldOut,
    config: PromoteConfig,
    folder: Path,
) -> Promotion:
    """The gates' decision, before anything is moved."""
    rivalry = None
    if champion is not None:
        fetched = versions.download(config.registered_name, champion, folder, config.tracking)
        rivalry = _rivalry(candidate, champion, fetched, held_out, config)
    gates = judge(candidate.score, rivalry, _provenance(candidate), config.gates)
    decision = PROMOTED if all(gate.passed for gate in gates) else REFUSED
    name, differences = config.registered_name, candidate.differences
    return Promotion(name, version, decision, champion, candidate.score, rivalry, gates, differences)


def _rivalry(candidate: _Candidate, version: str, model: str, held_out: HeldOut, config: PromoteConfig) -> Rivalry:
    """The champion on the candidate's tiles. Raises InputError when it decides among other classes."""
    examiner = Examiner.load(model, held_out, config.storage)
    if (examiner.kind, examiner.classes) != (candidate.examiner.kind, candidate.examiner.classes):
        raise InputError(
            f"the champion of {config.registered_name!r} decides among {', '.join(examiner.classes)} and the candidate "
            f"among {', '.join(candidate.examiner.classes)}; register it under another name."
        )
    # downloaded to this process alone, so not by the cluster's workers
    answers = all_answers(examiner, model, None)
    score, main = score_of(examiner, answers, draws=0), candidate.score.main
    cases = column(examiner, answers, "case")
    difference, (low, high) = paired_difference(candidate.answers, answers, cases, main, config.gates.draws)
    return Rivalry(version, score.figures[main], difference, low, high, score.gmacs)


def _provenance(candidate: _Candidate) -> Provenance:
    card, examiner = candidate.examiner.card, candidate.examiner
    held_out = case_digests(examiner.manifest, examiner.held_out.split)
    missing = [name for name in ("tiles_digest", "train_cases") if not getattr(card, name)]
    return Provenance(
        missing=tuple(missing),
        seen_cases=len(np.intersect1d(held_out, card.train_cases)),
        difference=max(candidate.differences.values()),
    )


def _evidence(candidate: _Candidate, config: PromoteConfig) -> dict[str, bytes]:
    """What lies beside a version's model: how it scored, the formats it is exported in, its card."""
    examiner, score = candidate.examiner, candidate.score
    card: ModelCard = examiner.card
    told = exports.interface(card, score.model_digest, candidate.differences, config.licence)
    scored_on = f"{score.tiles} held-out tiles of {score.cases} cases ({score.tiles_digest[:12]}, {score.split})"
    files = {
        **candidate.files,
        **exports.preparation(),
        exports.INTERFACE_NAME: versions.json_bytes(told),
        exports.README_NAME: exports.readme(card, told, score.figures, scored_on).encode(),
    }
    return {f"{EXPORTS_FOLDER}/{name}": data for name, data in files.items()} | {
        versions.SCORE_PATH: versions.json_bytes(dataclasses.asdict(score)),
        versions.PICTURE_PATH: tiles_picture(examiner, spread_tiles(examiner, config.picture_rows)),
    }


def _rolled_back(client: "MlflowClient", config: PromoteConfig) -> Promotion:
    name = config.registered_name
    ledger = read_ledger(client, name) if versions.exists(client, name) else None
    champion = None if ledger is None else ledger.champion
    former = None if ledger is None or champion is None else before(ledger.terms, champion)
    if ledger is None or champion is None or former is None:
        raise InputError(f"{name!r} has no former champion to go back to; promote a model first.")
    begin_term(client, name, ledger, former, rollback=True)
    promotion = Promotion(name, former, ROLLED_BACK, champion)
    _record(client, promotion, config)
    return promotion


def _record(client: "MlflowClient", promotion: Promotion, config: PromoteConfig) -> None:
    """Write the decision and its figures to the version and to its run."""
    name, version = promotion.registered_name, promotion.version
    assert version is not None
    tags = {"decision": promotion.decision}
    if promotion.score is not None:
        tags |= {f"scored.{key}": f"{value:.6g}" for key, value in promotion.score.figures.items()}
        tags |= {"scored.gmacs": f"{promotion.score.gmacs:.6g}", "scored.tiles_digest": promotion.score.tiles_digest}
    for gate in promotion.gates:
        said = "passed" if gate.passed else "failed"
        text = f"{said}: {gate.value:.6g}, {gate.required}, short by {gate.shortfall:.6g}"
        tags[f"gate.{gate.name.replace(' ', '_')}"] = text
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    run_id = client.get_model_version(name, version).run_id
    record = promotion.values() | {"config": config.model_dump(mode="json")}
    log_file(client, run_id, DECISION_PATH, versions.json_bytes(record))


def _copied(promotion: Promotion, config: PromoteConfig) -> Promotion:
    """Let the registry of production have the same champion, if there is one to have it."""
    if config.copy_to is None or not promotion.ok:
        return promotion
    assert promotion.version is not None
    version = copy_version(promotion.registered_name, promotion.version, config.tracking, Tracking(uri=config.copy_to))
    return dataclasses.replace(promotion, copied=version)


def copy_version(name: str, version: str, source: Tracking, target: Tracking) -> str:
    """Copy a version, with all that lies beside it, to another server and make it the champion there; its number.

    Both servers are asked with the credentials in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    uri, storage = required_server_uri(target), Storage()
    with tempfile.TemporaryDirectory(prefix="histill-") as folder:
        model = versions.download(name, version, _made(folder, "model"), source)
        evidence = versions.evidence(name, version, _made(folder, "evidence"), source)
        copied = versions.register(model, name, evidence, target, storage)
    client = connect(uri)
    with server_errors(uri):
        client.set_model_version_tag(name, copied, "copied_from", f"version {version} of {required_server_uri(source)}")
        ledger = read_ledger(client, name)
        if copied != ledger.champion:
            begin_term(client, name, ledger, copied)
    return copied
