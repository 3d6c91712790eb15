"""A candidate against the champion: scored alike, judged by the gates, the alias moved last."""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histill.artifacts import model_folder
from histill.config.scoring import PromoteConfig
from histill.errors import HistillError, InputError
from histill.evaluate.pictures import comparison_rows
from histill.evaluate.score import Score, score_model
from histill.registry import versions
from histill.registry.gates import Figures, GateResult, judge
from histill.registry.server import connect, log_file, required_server_uri, server_errors
from histill.tiles.manifest import read_header

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROMOTED = "promoted"
REFUSED = "refused"
ALREADY = "already champion"
DECISION_PATH = "decision.json"


@dataclass(frozen=True)
class Promotion:
    """What became of a candidate; `former` is the champion's version before.

    `champion` and `gates` are what it was judged against; a candidate that is the champion already is not
    judged.
    """

    registered_name: str
    version: str
    decision: str
    former: str | None
    candidate: Figures
    champion: Figures | None
    gates: tuple[GateResult, ...]

    @property
    def ok(self) -> bool:
        """Whether the candidate is champion now."""
        return self.decision != REFUSED

    def values(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)


def promote(config: PromoteConfig) -> Promotion:
    """Score the candidate and the champion on the same held-out tiles, register the candidate, and move the
    alias `champion` to it when it passes every gate; the former champion becomes `previous`.

    The version carries the decision and each gate's figures as tags, its run `decision.json`. A candidate
    that is the champion already stays it.

    Raises:
        InputError: no registry, no such model, held-out tiles that the candidate has learned from.
        HistillError: another promotion moved the champion meanwhile.
    """
    uri = required_server_uri(config.tracking)
    name = config.registered_name
    with tempfile.TemporaryDirectory(prefix="histill-") as folder:
        fetched = versions.fetch_model(config.model, config.tracking, Path(folder))
        model = model_folder.resolve(fetched, config.storage)
        _check_unseen(model, config)
        score = score_model(model, config.held_out, config.storage)
        picture = comparison_rows(model, config.held_out, config.picture_rows, config.storage)
        evidence = {versions.SCORE_PATH: versions.json_bytes(dataclasses.asdict(score)), versions.PICTURE_PATH: picture}
        version = versions.register(model, name, evidence, config.tracking, config.storage, score.model_digest)
    former = versions.champion(name, config.tracking)
    candidate = figures_of(score)
    if version == former:
        return Promotion(name, version, ALREADY, former, candidate, None, ())
    champion = None if former is None else _champion_figures(former, config)
    gates = judge(candidate, champion, config.gates)
    decision = PROMOTED if all(gate.passed for gate in gates) else REFUSED
    promotion = Promotion(name, version, decision, former, candidate, champion, gates)
    client = connect(uri)
    with server_errors(uri):
        _record(client, promotion, config)
        if promotion.ok:
            _move_alias(client, promotion)
    return promotion


def figures_of(score: Score) -> Figures:
    """What the gates look at."""
    return Figures(score.dice, score.miou, score.gmacs, score.parameters, score.tiles, score.tiles_digest)


def _check_unseen(model: str, config: PromoteConfig) -> None:
    card = model_folder.read_card(model, config.storage)
    held_out = config.held_out
    if held_out.split == "train" and card.tiles_digest == read_header(held_out.tiles, config.storage).digest:
        raise InputError(
            f"held_out.split is 'train' and {config.model} was trained on that tile set ({held_out.tiles}); "
            "set it to test, or hold out other tiles."
        )


def _champion_figures(version: str, config: PromoteConfig) -> Figures:
    with tempfile.TemporaryDirectory(prefix="histill-") as folder:
        model = versions.download(config.registered_name, version, Path(folder), config.tracking)
        return figures_of(score_model(model, config.held_out, config.storage))


def _record(client: "MlflowClient", promotion: Promotion, config: PromoteConfig) -> None:
    """Write the decision and its figures to the version and to its run."""
    name, version = promotion.registered_name, promotion.version
    tags = {"decision": promotion.decision, "scored.tiles_digest": promotion.candidate.tiles_digest}
    tags |= {f"scored.{key}": f"{getattr(promotion.candidate, key):.6g}" for key in ("dice", "miou", "gmacs")}
    for gate in promotion.gates:
        said = "passed" if gate.passed else "failed"
        tags[f"gate.{gate.name}"] = f"{said}: {gate.value:.6g}, limit {gate.limit:.6g}, short by {gate.shortfall:.6g}"
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    run_id = client.get_model_version(name, version).run_id
    record = promotion.values() | {"config": config.model_dump(mode="json")}
    log_file(client, run_id, DECISION_PATH, versions.json_bytes(record))


def _move_alias(client: "MlflowClient", promotion: Promotion) -> None:
    """Give the version the alias `champion`, last of all, so that a crash leaves the old champion in place."""
    name, former = promotion.registered_name, promotion.former
    if versions.champion_version(client, name) != former:
        raise HistillError(
            f"another promotion gave {name!r} a new champion meanwhile; run the same command again to be "
            "judged against it."
        )
    if former is not None:
        client.set_registered_model_alias(name, versions.PREVIOUS, former)
    client.set_registered_model_alias(name, versions.CHAMPION, promotion.version)
