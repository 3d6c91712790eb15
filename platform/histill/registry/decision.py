"""The outcome of a promotion, and its record on the registered version."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histill.config.promote_model import PromoteConfig
from histill.evaluate.score import Score
from histill.registry.champions import DECISION_TAG, PROMOTED, ROLLED_BACK
from histill.registry.gates import ChampionComparison, GateResult
from histill.registry.mlflow_client import log_file
from histill.storage.control import json_bytes

if TYPE_CHECKING:
    from mlflow import MlflowClient

REFUSED, ALREADY = "refused", "already champion"
PASSED, LATE = "passed the gates", "rejected: another promotion was faster"  # not champion yet, and never
WOULD = {PASSED: "would be promoted", REFUSED: "would be refused"}
DECISION_PATH = "decision.json"
_GOOD = (PASSED, PROMOTED, ALREADY, ROLLED_BACK, WOULD[PASSED])


@dataclass(frozen=True)
class Promotion:
    """The outcome for a candidate; `former` is the version that was champion before.

    `version` is None if nothing was registered. A candidate that is already the champion, or a former champion restored
    by a rollback, is not judged.
    """

    registered_name: str
    version: str | None
    decision: str
    former: str | None
    score: Score | None = None
    rivalry: ChampionComparison | None = None
    gates: tuple[GateResult, ...] = ()
    differences: dict[str, float] = dataclasses.field(default_factory=dict)  # of logits, by exported format
    copied: str | None = None  # version in the production registry

    @property
    def ok(self) -> bool:
        """Whether the candidate is now champion, or would be in a dry run."""
        return self.decision in _GOOD

    def values(self) -> dict[str, Any]:
        """As plain values, without the per-slide scores."""
        found = dataclasses.asdict(self)
        if found["score"] is not None:
            del found["score"]["by_slide"]
        return found


def record_decision(client: "MlflowClient", promotion: Promotion, config: PromoteConfig) -> None:
    """Write the decision and its figures to the version and to its run."""
    name, version, score = promotion.registered_name, promotion.version, promotion.score
    assert version is not None
    tags: dict[str, str] = {}
    if score is not None:
        tags |= {f"scored.{key}": f"{value:.6g}" for key, value in score.figures.items()}
        tags |= {"scored.gmacs": f"{score.gmacs:.6g}", "scored.tiles_digest": score.tiles_digest}
        tags |= {"scored.split": score.split, "scored.reference": score.reference}
    for gate in promotion.gates:
        said = "passed" if gate.passed else "failed"
        short = "" if gate.passed else f", short by {gate.shortfall:.6g}"
        text = f"{said}: {gate.value:.6g}, {gate.required}{short}"
        tags[f"gate.{gate.name.replace(' ', '_')}"] = text
    tags[DECISION_TAG] = promotion.decision
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    run_id = client.get_model_version(name, version).run_id
    record = promotion.values() | {"config": config.model_dump(mode="json")}
    log_file(client, run_id, DECISION_PATH, json_bytes(record))
