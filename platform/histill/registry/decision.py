"""The outcome of a promotion, and its record on the registered version."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from histill.artifacts.formats.made import ListedFormat, RoundedScore
from histill.cluster.progress import count_of
from histill.config.promote_model import PromoteConfig
from histill.config.redact import redact
from histill.evaluate.bootstrap import LEAST_CASES
from histill.evaluate.score import Score
from histill.registry.champions import DECISION_TAG, PROMOTED, ROLLED_BACK
from histill.registry.fetch import LOGGED_MODEL_TAG
from histill.registry.gates import ChampionComparison, GateResult, TableStyle, format_gates
from histill.registry.mlflow_client import log_file
from histill.registry.origin import NOTE_TAG
from histill.storage.control import json_bytes

if TYPE_CHECKING:
    from mlflow import MlflowClient

REFUSED, ALREADY = "refused", "already champion"
PASSED, LATE = "passed the gates", "rejected: another promotion was faster"  # not champion yet, and never
WOULD = {PASSED: "would be promoted", REFUSED: "would be refused"}
DECISION_PATH = "decision.json"
_PARAGRAPH = "\n\n"
_LONGEST_DESCRIPTION = 5000  # MLflow's limit
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
    formats: tuple[ListedFormat, ...] = ()  # what was made for other programs, and what was not
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


def format_files(formats: Sequence[ListedFormat]) -> str:
    """Format what was made for other programs as text, one row per file, and why a format was not made."""
    rows = [
        (each.format, path, f"{size / 1e6:.3f}", f"{each.difference:.2g}")
        for each in formats
        for path, size in each.files.items()
    ]
    rows += [(each.format, "-", "-", f"skipped: {each.skipped}") for each in formats if each.skipped]
    return tabulate(rows, headers=("format", "file", "MB", "largest difference"), disable_numparse=True)


def format_quantized(formats: Sequence[ListedFormat], style: TableStyle = "simple") -> str:
    """Format how quantized formats compare with the float model, one row per format; empty without any."""
    rows = [
        (
            each.format,
            f"at least {-score.margin:g}",
            f"{score.figure.replace('_', ' ')} {score.value:.4f}, {score.difference:+.4f} "
            f"({score.low:+.4f} to {score.high:+.4f})",
            f"{score.ms_per_tile:.2f} ({score.float_ms_per_tile / score.ms_per_tile:.2f}x)",
            f"{len(score.float_layers)} of {len(score.layer_errors)}",
            describe_quantized(score),
        )
        for each in formats
        if (score := each.rounded) is not None
    ]
    headers = ("quantized", "required", "against the float model", "ms a tile", "layers in float", "result")
    return tabulate(rows, headers=headers, tablefmt=style, disable_numparse=True) if rows else ""


def describe_quantized(score: RoundedScore) -> str:
    """Whether a quantized format is kept, in words."""
    if score.passed:
        return "kept"
    if math.isnan(score.low):
        return f"REFUSED: an interval needs {LEAST_CASES} held-out cases"
    return f"REFUSED by {-score.margin - score.low:.3g}"


def _describe_judgement(promotion: Promotion, config: PromoteConfig) -> str:
    """What the candidate was judged on and beside, how each gate decided, and its quantized formats, in Markdown."""
    score = promotion.score
    assert score is not None
    assert config.held_out is not None
    tiles = f"`{redact(config.held_out.tiles)}` ({score.tiles_digest[:12]}, {score.split})"
    beside = "" if promotion.former is None else f", beside version {promotion.former}"
    judged = f"Judged on {count_of(score.tiles, 'tile')} of {count_of(score.cases, 'case')} of {tiles}{beside}:"
    tables = (format_gates(promotion.gates, "github"), format_quantized(promotion.formats, "github"))
    return _PARAGRAPH.join([judged, *filter(None, tables)])


def _shorten(text: str) -> str:
    """`text`, Markdown, by whole lines if MLflow would refuse it."""
    if len(text) <= _LONGEST_DESCRIPTION:
        return text
    more = f"{_PARAGRAPH}The rest is in `{DECISION_PATH}`, a file of the version's run."
    return text[: _LONGEST_DESCRIPTION - len(more)].rpartition("\n")[0] + more


def record_decision(client: "MlflowClient", promotion: Promotion, config: PromoteConfig) -> None:
    """Write the decision and its figures to the version, to its LoggedModel and to its run."""
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
    for each in promotion.formats:
        if each.rounded is not None:
            tags[f"quantized.{each.format}"] = (
                f"{describe_quantized(each.rounded)}: {each.rounded.figure} {each.rounded.difference:+.6g} "
                f"({each.rounded.low:+.6g} to {each.rounded.high:+.6g})"
            )
    tags[DECISION_TAG] = promotion.decision
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    found = client.get_model_version(name, version)
    if promotion.gates:
        about = f"{found.description.partition(_PARAGRAPH)[0]}{_PARAGRAPH}{_describe_judgement(promotion, config)}"
        about = _shorten(about)
        client.update_model_version(name, version, about)
        tags[NOTE_TAG] = about  # a LoggedModel's page shows its description, and none of its other tags
    if LOGGED_MODEL_TAG in found.tags:
        client.set_logged_model_tags(found.tags[LOGGED_MODEL_TAG], tags)
    record = promotion.values() | {"config": config.model_dump(mode="json")}
    log_file(client, found.run_id, DECISION_PATH, json_bytes(record))
