"""Promote a candidate: score it and the champion, evaluate the gates, move the alias last."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from histill.artifacts import model_folder
from histill.config.common import Tracking
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import HeldOut
from histill.errors import HistillError, InputError
from histill.registry import versions
from histill.registry.candidate import Candidate, collect_evidence, examine_candidate, trace_provenance
from histill.registry.champions import PROMOTED, ROLLED_BACK, ChampionHistory, append_champion, read_history
from histill.registry.comparison import best_earlier, compare_with, count_tries
from histill.registry.decision import ALREADY, LATE, PASSED, REFUSED, WOULD, Promotion, record_decision
from histill.registry.fetch import fetch_model
from histill.registry.gates import evaluate_gates
from histill.registry.materialize import check_workers, materialize_reference
from histill.registry.mlflow_client import connect, require_server_uri, server_errors
from histill.registry.production import copy_champion
from histill.storage.scratch import scratch_folder
from histill.train.tracker import DataUse

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)


def promote(config: PromoteConfig) -> Promotion:
    """Score the candidate and the champion on the same held-out tiles, register the candidate, and make it champion if
    it passes every gate; the former champion becomes `previous`.

    The version gets the decision and each gate's figures as tags, its run `decision.json`. It is tagged "promoted" only
    once it is in the champion history. With `rollback` the former champion is restored without being judged. Of two
    concurrent promotions one fails and must be repeated. If the champion was deleted by hand, the last one before it
    takes its place.

    Raises:
        InputError: no registry, no such model, no former champion, held-out tiles unlike the model's.
        HistillError: another promotion moved the champion meanwhile.
    """
    uri = require_server_uri(config.tracking)
    if config.copy_to is not None:
        require_server_uri(Tracking(uri=config.copy_to))
    client, name = connect(uri), config.registered_name
    if config.rollback:
        with server_errors(uri):
            promotion = _go_back(client, config)
        return copy_champion(promotion, config)
    assert config.model is not None
    assert config.held_out is not None
    check_workers(config.model, config.held_out, config.workers, config.tracking)
    with scratch_folder() as folder:
        fetched = Path(folder, "candidate")
        fetched.mkdir()
        model = model_folder.resolve(fetch_model(config.model, config.tracking, fetched), config.storage)
        held_out = materialize_reference(config.held_out, config.tracking, folder, config.storage)
        candidate = examine_candidate(model, held_out, config)
        if config.dry_run:
            with server_errors(uri):
                known = versions.has_versions(client, name)
                ledger = read_history(client, name, settle=False) if known else None
                promotion = _judge(client, candidate, ledger, None, held_out, config)
            return dataclasses.replace(promotion, decision=WOULD[promotion.decision])
        version = versions.register(
            model, name, collect_evidence(candidate, config), config.tracking, config.storage,
            candidate.score.model_digest, origin=config.model,
            scored_on=DataUse(held_out.tiles, candidate.score.tiles_digest, "evaluation"),
        )  # fmt: skip
        with server_errors(uri):
            ledger = read_history(client, name)
            if version == ledger.champion:
                if not ledger.crowned:  # its alias, or a later champion, was deleted
                    append_champion(client, name, ledger, version)
                promotion = Promotion(name, version, ALREADY, version, candidate.score)
            else:
                promotion = _judge(client, candidate, ledger, version, held_out, config)
                promotion = _crown(client, promotion, ledger, version, config)
    return copy_champion(promotion, config)


def _judge(
    client: "MlflowClient",
    candidate: Candidate,
    ledger: ChampionHistory | None,
    version: str | None,
    held_out: HeldOut,
    config: PromoteConfig,
) -> Promotion:
    """Evaluate the gates, before any alias is moved; `version` is None in a dry run."""
    name, score = config.registered_name, candidate.score
    rivalry, best, missing = None, None, "" if ledger is None else _missing(ledger)
    champion = None if ledger is None else ledger.champion
    tries = 1 if ledger is None else count_tries(client, name, score, keep=version is not None)
    if ledger is not None and champion is not None:
        rivalry = compare_with(champion, candidate, held_out, config)
        rivalry = dataclasses.replace(rivalry, tries=tries, note=missing)
        earlier = best_earlier(client, name, ledger, score, rivalry.figure)
        best = None if earlier is None else compare_with(earlier, candidate, held_out, config)
    provenance = trace_provenance(candidate.examiner, candidate.formats, candidate.answers, config.gates.license.stated)
    gates = evaluate_gates(score, rivalry, provenance, config.gates, best, missing)
    decision = PASSED if all(gate.passed for gate in gates) else REFUSED
    return Promotion(name, version, decision, champion, score, rivalry, gates, candidate.formats)


def _missing(ledger: ChampionHistory) -> str:
    """Why no version has the alias `champion`; empty if one has it, or there never was a champion."""
    if ledger.crowned or not ledger.terms:
        return ""
    if ledger.champion is None:
        return f"every champion (version {', '.join(ledger.deleted)}) was deleted: nothing to compare with"
    if ledger.deleted:
        return f"the champion, version {ledger.deleted[0]}, was deleted, and this one was before it"
    return "its alias was deleted"


def _crown(
    client: "MlflowClient", promotion: Promotion, ledger: ChampionHistory, version: str, config: PromoteConfig
) -> Promotion:
    """Make a candidate that passed champion, then tag its version so. Raises HistillError if another was faster."""
    record_decision(client, promotion, config)
    if not promotion.ok:
        return promotion
    try:
        append_champion(client, promotion.registered_name, ledger, version)
    except HistillError:
        if versions.champion_version(client, promotion.registered_name) != version:  # else another job did it
            if version in versions.list_living_versions(client, promotion.registered_name):
                record_decision(client, dataclasses.replace(promotion, decision=LATE), config)
            raise
    promotion = dataclasses.replace(promotion, decision=PROMOTED)
    record_decision(client, promotion, config)
    return promotion


def _go_back(client: "MlflowClient", config: PromoteConfig) -> Promotion:
    name = config.registered_name
    ledger = read_history(client, name) if versions.has_versions(client, name) else None
    if ledger is not None and _has_gone_back(ledger, config.rollback_from):
        promotion = Promotion(name, ledger.champion, ROLLED_BACK, str(config.rollback_from))
        record_decision(client, promotion, config)
        return promotion
    target = None if ledger is None else ledger.way_back
    if ledger is None or target is None:
        raise InputError(
            f"{name!r} has no former champion to go back to; promote a model first.", code="version-missing"
        )
    former = ledger.deleted[0] if ledger.deleted else ledger.champion
    if config.rollback_from is not None and str(config.rollback_from) != former:
        raise InputError(
            f"version {config.rollback_from} of {name!r} is not the champion, which is version {former}; set "
            "rollback_from to that to go back from it.",
            code="champion-changed",
        )
    if ledger.deleted:
        _LOG.warning("the champion of %r, version %s, was deleted; version %s was before it.", name, former, target)
    append_champion(client, name, ledger, target, rollback=True)
    promotion = Promotion(name, target, ROLLED_BACK, former)
    record_decision(client, promotion, config)
    return promotion


def _has_gone_back(ledger: ChampionHistory, version: int | None) -> bool:
    """Whether the last entry is a rollback from `version`, as after an earlier run of the same command."""
    last = ledger.terms[-1] if ledger.terms else None
    return last is not None and last.rollback and (last.version, last.former) == (ledger.champion, str(version))
