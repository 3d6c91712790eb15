"""Who was champion of a registered model, term after term: a ledger that only one of two promotions can write to.

MLflow moves an alias for whoever asks last. A parameter of a run, though, is never changed once it is there, and the
server's database sees to that. Term n is therefore the parameter `champion.<n>` of the run of the model's first
version: of two promotions that both saw term n - 1, the first to write is the champion, the other is told so. The
aliases `champion` and `previous` follow the ledger; a process that ends between the two leaves them to the next one.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from histill.errors import HistillError
from histill.registry.versions import CHAMPION, PREVIOUS, champion_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PARAM, _SETTLED = "champion.", "champion.settled"


@dataclass(frozen=True)
class Term:
    """Since term `number` the champion is `version`, after `former` (None: it was the first)."""

    number: int
    version: str
    former: str | None
    rollback: bool = False


@dataclass(frozen=True)
class Ledger:
    """All terms of a registered model, and its champion now."""

    run_id: str  # that holds the terms
    terms: tuple[Term, ...]
    champion: str | None


def read_ledger(client: "MlflowClient", name: str) -> Ledger:
    """The ledger of `name`, which has a version; first ends what an interrupted promotion has begun.

    An alias that was moved by hand is believed: its version is the champion.
    """
    first = min(client.search_model_versions(f"name = '{name}'"), key=lambda each: int(each.version))
    terms = _terms(client, first.run_id)
    if terms and client.get_run(first.run_id).data.tags.get(_SETTLED) != str(terms[-1].number):
        terms = _settle(client, name, first.run_id)
    return Ledger(first.run_id, terms, champion_version(client, name))


def begin_term(client: "MlflowClient", name: str, ledger: Ledger, version: str, *, rollback: bool = False) -> Term:
    """Make `version` the champion after the one in `ledger`, and move the aliases.

    Raises HistillError when another has become champion since the ledger was read.
    """
    from mlflow.exceptions import MlflowException

    number = ledger.terms[-1].number + 1 if ledger.terms else 1
    term = Term(number, version, ledger.champion, rollback)
    values = {key: value for key, value in asdict(term).items() if key != "number"}
    meanwhile = HistillError(
        f"another promotion gave {name!r} a new champion meanwhile; run the same command again to be judged against it."
    )
    if champion_version(client, name) != ledger.champion:
        raise meanwhile
    try:
        client.log_param(ledger.run_id, f"{_PARAM}{number}", json.dumps(values, sort_keys=True))
    except MlflowException:
        if number not in [each.number for each in _terms(client, ledger.run_id)]:
            raise
        raise meanwhile from None
    _settle(client, name, ledger.run_id)
    return term


def before(terms: Sequence[Term], version: str) -> str | None:
    """Who was champion before `version` last became it by promotion."""
    return next((term.former for term in reversed(terms) if term.version == version and not term.rollback), None)


def _terms(client: "MlflowClient", run_id: str) -> tuple[Term, ...]:
    params = client.get_run(run_id).data.params
    numbers = sorted(int(key.removeprefix(_PARAM)) for key in params if key.startswith(_PARAM))
    return tuple(Term(number, **json.loads(params[f"{_PARAM}{number}"])) for number in numbers)


def _settle(client: "MlflowClient", name: str, run_id: str) -> tuple[Term, ...]:
    """Let the aliases say what the last term says, which may be a newer one than the caller knows; the terms."""
    terms: tuple[Term, ...] = ()
    while terms != (found := _terms(client, run_id)):
        terms = found
        term = terms[-1]
        previous = before(terms, term.version) if term.rollback else term.former
        if previous is not None:
            client.set_registered_model_alias(name, PREVIOUS, previous)
        elif PREVIOUS in client.get_registered_model(name).aliases:
            client.delete_registered_model_alias(name, PREVIOUS)
        client.set_registered_model_alias(name, CHAMPION, term.version)
        client.set_tag(run_id, _SETTLED, str(term.number))
    return terms
