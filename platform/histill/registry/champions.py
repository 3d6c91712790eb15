"""The champion history of a registered model, which only one of two concurrent promotions can append to.

An MLflow alias is last-writer-wins. A run parameter, though, never changes once it is set, and the server's database
enforces that. Entry n is therefore the parameter `champion.<n>` of one run (registry/champions_run.py): of two
promotions that both read entry n - 1, the first to write wins and the other fails. The aliases `champion` and
`previous` are set from the history; if a process dies in between, the next one sets them. Versions deleted by hand are
skipped throughout.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from histill.errors import HistillError, InputError
from histill.registry.champions_run import find_history_run, remember_history_run
from histill.registry.versions import CHAMPION, PREVIOUS, champion_version, list_living_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROMOTED, ROLLED_BACK = "promoted", "rolled back"
DECISION_TAG = "decision"
_PARAM, _SETTLED = "champion.", "champion.settled"


@dataclass(frozen=True)
class ChampionEntry:
    """Entry `number` of the history: `version` became champion after `former` (None: it is the first)."""

    number: int
    version: str
    former: str | None
    rollback: bool = False
    model: str | None = None  # digest of the version's model: the number of a deleted version may be reused


@dataclass(frozen=True)
class ChampionHistory:
    """All entries of a registered model's history, and its current champion."""

    run_id: str  # the run that holds the entries
    terms: tuple[ChampionEntry, ...]
    champion: str | None  # version that a candidate is judged against
    crowned: bool = True  # whether it has the alias; else it is the last champion that still exists
    deleted: tuple[str, ...] = ()  # later champions that were deleted, newest first
    living: frozenset[str] = frozenset()  # versions that exist

    @property
    def way_back(self) -> str | None:
        """The version that a rollback makes champion, or None."""
        if self.champion is None or self.deleted:
            return self.champion  # if the champion was deleted, this is the last one before it
        former = predecessor(self.terms, self.champion, self.living)
        moved = self.terms and self.champion not in {term.version for term in self.terms}  # alias moved by hand
        return _last(self.terms, self.living) if moved else former


def read_history(client: "MlflowClient", name: str, *, settle: bool = True) -> ChampionHistory:
    """Read the history of the registered model `name`, which must have a version.

    With `settle`, first completes an interrupted promotion; otherwise changes nothing. If the alias was moved by hand,
    the version it points to is the champion. Without an alias, the last champion that still exists is.
    """
    living = list_living_versions(client, name)
    run_id = find_history_run(client, name, living)
    if settle:
        remember_history_run(client, name, run_id)
    terms = _terms(client, run_id)
    settled = client.get_run(run_id).data.tags.get(_SETTLED) == str(terms[-1].number) if terms else True
    if settle and not settled:
        terms, settled = _settle(client, name, run_id), True
    alive = _alive(terms, living)
    crowned = champion_version(client, name) if settled else None
    champion = crowned or _last(terms, alive)
    deleted: list[str] = []
    if crowned is None:
        for term in reversed(terms):
            if term.version == champion:
                break
            deleted.append(term.version)
    return ChampionHistory(run_id, terms, champion, crowned is not None, tuple(dict.fromkeys(deleted)), alive)


def append_champion(
    client: "MlflowClient", name: str, ledger: ChampionHistory, version: str, *, rollback: bool = False
) -> ChampionEntry:
    """Make `version` the successor of the champion in `ledger`, and move the aliases.

    Raises InputError when there is no such version, HistillError when another version has become champion since
    `ledger` was read or the version is deleted meanwhile.
    """
    from mlflow.exceptions import MlflowException

    number = ledger.terms[-1].number + 1 if ledger.terms else 1
    meanwhile = HistillError(
        f"another promotion gave {name!r} a new champion meanwhile; run the same command again to be judged "
        "against it.",
        code="champion-changed",
    )
    living = list_living_versions(client, name)
    if version not in living:
        raise InputError(
            f"version {version} of {name!r} was deleted; promote another one, or register it again.",
            code="version-missing",
        )
    now = champion_version(client, name) or _last(_terms(client, ledger.run_id), _alive(ledger.terms, living))
    if now != ledger.champion:
        raise meanwhile
    term = ChampionEntry(number, version, ledger.champion, rollback, living[version])
    values = {key: value for key, value in asdict(term).items() if key != "number"}
    try:
        client.log_param(ledger.run_id, f"{_PARAM}{number}", json.dumps(values, sort_keys=True))
    except MlflowException:
        if number not in [each.number for each in _terms(client, ledger.run_id)]:
            raise
        raise meanwhile from None
    _settle(client, name, ledger.run_id)
    if version not in list_living_versions(client, name):
        raise HistillError(
            f"version {version} of {name!r} was deleted while it became champion; the champion before it stands.",
            code="version-missing",
        )
    return term


def predecessor(terms: Sequence[ChampionEntry], version: str, living: Collection[str] | None = None) -> str | None:
    """The champion before the last promotion of `version`, skipping those not in `living` (None: skip none)."""
    passed: set[str] = set()
    found: str | None = version
    while found is not None and found not in passed:
        passed.add(found)
        formers = (term.former for term in reversed(terms) if term.version == found and not term.rollback)
        found = next((former for former in formers if former not in passed), None)
        if found is not None and (living is None or found in living):
            return found
    return None


def _terms(client: "MlflowClient", run_id: str) -> tuple[ChampionEntry, ...]:
    params = client.get_run(run_id).data.params
    numbers = [key.removeprefix(_PARAM) for key in params if key.startswith(_PARAM)]
    return tuple(
        ChampionEntry(number, **json.loads(params[f"{_PARAM}{number}"])) for number in sorted(map(int, numbers))
    )


def _alive(terms: Sequence[ChampionEntry], living: Mapping[str, str]) -> frozenset[str]:
    """The versions that exist and, where the history records their model's digest, still hold that model."""
    models = {term.version: term.model for term in terms}
    return frozenset(each for each in living if models.get(each) in (None, living[each]))


def _last(terms: Sequence[ChampionEntry], living: Collection[str]) -> str | None:
    return next((term.version for term in reversed(terms) if term.version in living), None)


def _settle(client: "MlflowClient", name: str, run_id: str) -> tuple[ChampionEntry, ...]:
    """Set the aliases from the last entry, which may be newer than the caller's; return the entries.

    Entries whose version was deleted are skipped.
    """
    terms: tuple[ChampionEntry, ...] = ()
    while terms != (found := _terms(client, run_id)):
        terms = found
        alive = _alive(terms, list_living_versions(client, name))
        term = next((term for term in reversed(terms) if term.version in alive), None)
        previous = None if term is None else predecessor(terms, term.version, alive)
        if previous is not None:
            client.set_registered_model_alias(name, PREVIOUS, previous)
        elif PREVIOUS in client.get_registered_model(name).aliases:
            client.delete_registered_model_alias(name, PREVIOUS)
        if term is not None:
            client.set_registered_model_alias(name, CHAMPION, term.version)
            said = ROLLED_BACK if term.rollback else PROMOTED
            client.set_model_version_tag(name, term.version, DECISION_TAG, said)
        client.set_tag(run_id, _SETTLED, str(terms[-1].number))
    return terms
