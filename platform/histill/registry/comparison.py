"""Compare a candidate with the champion and the best earlier champion on the same held-out tiles."""

from pathlib import Path
from typing import TYPE_CHECKING

from histill.artifacts.model_folder import read_card
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import HeldOut
from histill.errors import InputError
from histill.evaluate.bootstrap import paired_difference
from histill.evaluate.examine import examine
from histill.evaluate.score import Score, compute_score, read_column
from histill.registry.candidate import Candidate
from histill.registry.champions import ChampionHistory
from histill.registry.fetch import download_version
from histill.registry.gates import ROUNDING, ChampionComparison
from histill.storage.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NOUNS = {"segmentation": "a segmenter", "classification": "a classifier", "encoder": "an encoder"}


def compare_with(version: str, candidate: Candidate, held_out: HeldOut, config: PromoteConfig) -> ChampionComparison:
    """Compare the candidate with a registered version. Raises InputError when that is of another kind or has other
    classes.
    """
    with scratch_folder() as folder:
        model = download_version(config.registered_name, version, Path(folder), config.tracking)
        own, wanted = read_card(model, config.storage).outputs, candidate.examiner.card.outputs
        if own.kind != wanted.kind:
            raise InputError(
                f"the champion of {config.registered_name!r}, version {version}, is {_NOUNS[own.kind]} and the "
                f"candidate {_NOUNS[wanted.kind]}; register it under another name.",
                code="models-not-comparable",
            )
        if (own.form, own.scored) != (wanted.form, wanted.scored):
            raise InputError(
                f"the champion of {config.registered_name!r}, version {version}, decides among "
                f"{', '.join(own.scored)} and the candidate among {', '.join(wanted.scored)}; "
                "register it under another name.",
                code="models-not-comparable",
            )
        # scored in this process: only it has the downloaded model, the cluster's workers do not
        examined = examine(model, held_out, config.storage)
    examiner, answers = examined.examiner, examined.answers
    score, main = compute_score(examined, bootstrap_samples=0), candidate.score.main
    cases = read_column(examiner, answers, "case")
    difference, (low, high) = paired_difference(candidate.answers, answers, cases, main, config.gates.bootstrap_samples)
    return ChampionComparison(version, score.figures[main], difference, low, high, score.gmacs, cases=score.cases)


def best_earlier(
    client: "MlflowClient", name: str, ledger: ChampionHistory, score: Score, champion: float
) -> str | None:
    """The best-scoring earlier champion on these held-out tiles, if it beats the current one; its version.

    `champion` is the current champion's figure. Earlier figures are read from the versions' tags.
    """
    found: dict[str, float] = {}
    same = {"tiles_digest": score.tiles_digest, "split": score.split, "reference": score.reference}
    for version in {term.version for term in ledger.terms} & ledger.living - {ledger.champion}:
        tags = client.get_model_version(name, version).tags
        figure = tags.get(f"scored.{score.main}")
        if tags.get("model_digest") == score.model_digest or figure is None:
            continue
        if all(tags.get(f"scored.{key}") == value for key, value in same.items()):
            found[version] = float(figure)
    best = max(found, key=lambda version: (found[version], int(version)), default=None)
    return best if best is not None and found[best] > champion + ROUNDING else None


def count_tries(client: "MlflowClient", name: str, score: Score, *, keep: bool) -> int:
    """How many models were judged on these held-out tiles under this name, the scored one included.

    Each one is recorded as a tag of the registered model, which survives deletion of its version; without `keep` this
    one is not recorded.
    """
    prefix = f"judged.{score.tiles_digest[:12]}.{score.split}."
    own = f"{prefix}{score.model_digest[:12]}"
    if keep:
        client.set_registered_model_tag(name, own, f"{score.figures[score.main]:.6g}")
    tags = client.get_registered_model(name).tags
    return len({own} | {key for key in tags if key.startswith(prefix)})
