"""The champion history of a registered model: of two promotions at once, only one can append to it.

MLflow moves an alias for whoever asks last. A parameter of a run, though, never changes once it is set, and the
server's database enforces that. Entry n is therefore the parameter `champion.<n>` of one run
(registry/champions_run.py): of two promotions that both saw entry n - 1, the first to write is the champion, and the
other is told so. The aliases `champion` and `previous` follow the history; a process that ends between the two leaves
them to the next one. A version that was deleted by hand is skipped, wherever it stands.
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
    """Since term `number` the champion is `version`, after `former` (None: it was the first)."""

    number: int
    version: str
    former: str | None
    rollback: bool = False
    model: str | None = None  # digest of the version's model, where a deleted version's number may come back


@dataclass(frozen=True)
class ChampionHistory:
    """All terms of a registered model, and its champion now."""

    run_id: str  # that holds the terms
    terms: tuple[ChampionEntry, ...]
    champion: str | None  # whom a candidate is judged against
    crowned: bool = True  # whether it has the alias; else it was the last champion that is still there
    deleted: tuple[str, ...] = ()  # champions after it that were deleted, the last one first
    living: frozenset[str] = frozenset()  # versions that are there

    @property
    def way_back(self) -> str | None:
        """The version that a rollback makes champion, or None."""
        if self.champion is None or self.deleted:
            return self.champion  # of a deleted champion the last one before it
        former = predecessor(self.terms, self.champion, self.living)
        moved = self.terms and self.champion not in {term.version for term in self.terms}  # by hand, to a newcomer
        return _last(self.terms, self.living) if moved else former


def read_history(client: "MlflowClient", name: str, *, settle: bool = True) -> ChampionHistory:
    """The ledger of `name`, which has a version.

    With `settle` it first ends what an interrupted promotion has begun; else nothing is changed. An alias that was
    moved by hand is believed: its version is the champion. Where there is no alias, the last champion that is still
    there stands for it.
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
    """Make `version` the champion after the one in `ledger`, and move the aliases.

    Raises InputError when there is no such version, HistillError when another has become champion since the ledger was
    read, or the version was deleted meanwhile.
    """
    from mlflow.exceptions import MlflowException

    number = ledger.terms[-1].number + 1 if ledger.terms else 1
    meanwhile = HistillError(
        f"another promotion gave {name!r} a new champion meanwhile; run the same command again to be judged against it."
    )
    living = list_living_versions(client, name)
    if version not in living:
        raise InputError(f"version {version} of {name!r} was deleted; promote another one, or register it again.")
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
            f"version {version} of {name!r} was deleted while it became champion; the champion before it stands."
        )
    return term


def predecessor(terms: Sequence[ChampionEntry], version: str, living: Collection[str] | None = None) -> str | None:
    """Who was champion before `version` last became it by promotion, and is among the `living` (None: any)."""
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
    """The versions that are there and, where the ledger knows their model, have it still."""
    models = {term.version: term.model for term in terms}
    return frozenset(each for each in living if models.get(each) in (None, living[each]))


def _last(terms: Sequence[ChampionEntry], living: Collection[str]) -> str | None:
    return next((term.version for term in reversed(terms) if term.version in living), None)


def _settle(client: "MlflowClient", name: str, run_id: str) -> tuple[ChampionEntry, ...]:
    """Let the aliases say what the last term says, which may be a newer one than the caller knows; the terms.

    A term whose version was deleted gives way to the one before it.
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
