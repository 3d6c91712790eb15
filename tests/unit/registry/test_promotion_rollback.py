"""The way back to the former champion, given once and again; with a real registry it is tested in tests/cluster."""

from typing import Any

import pytest

from histill.config.common import Tracking
from histill.config.load import validate
from histill.config.promote_model import PromoteConfig
from histill.errors import InputError
from histill.registry import promotion, versions
from histill.registry.champions import ROLLED_BACK, ChampionEntry, ChampionHistory
from histill.registry.decision import Promotion

pytestmark = pytest.mark.unit

FIRST, SECOND, THIRD = ChampionEntry(1, "3", None), ChampionEntry(2, "5", "3"), ChampionEntry(3, "7", "5")


class Registry:
    """A ledger in memory."""

    def __init__(self, *terms: ChampionEntry) -> None:
        self.terms = terms

    def read(self, *_: Any) -> ChampionHistory:
        return ChampionHistory("run", self.terms, self.terms[-1].version, living=frozenset({"3", "5", "7"}))

    def begin(self, client: Any, name: str, ledger: ChampionHistory, version: str, *, rollback: bool) -> None:
        self.terms = (*self.terms, ChampionEntry(len(self.terms) + 1, version, ledger.champion, rollback))


def go_back(registry: Registry, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> Promotion:
    monkeypatch.setattr(versions, "has_versions", lambda *_: True)
    monkeypatch.setattr(promotion, "read_history", registry.read)
    monkeypatch.setattr(promotion, "append_champion", registry.begin)
    monkeypatch.setattr(promotion, "record_decision", lambda *_: None)
    monkeypatch.setattr(promotion, "require_server_uri", lambda _: "http://host:1")
    monkeypatch.setattr(promotion, "connect", lambda *_: None)
    monkeypatch.setattr(promotion, "copy_champion", lambda found, _: found)
    data = {"registered_name": "x", "rollback": True, "tracking": Tracking(uri="http://host:1").model_dump(), **keys}
    return promotion.promote(validate(PromoteConfig, data, "the test"))


def test_a_rollback_that_names_its_version_goes_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the command is given: a job may be killed between its work and its answer."""
    registry = Registry(FIRST, SECOND, THIRD)
    first = go_back(registry, monkeypatch, rollback_from=7)
    assert (first.version, first.former, first.decision) == ("5", "7", ROLLED_BACK)
    assert go_back(registry, monkeypatch, rollback_from=7) == first
    assert len(registry.terms) == 4
    assert go_back(registry, monkeypatch, rollback_from=5).version == "3"
    assert go_back(registry, monkeypatch, rollback_from=5).version == "3"  # there is none before it
    assert len(registry.terms) == 5


def test_one_that_names_none_goes_back_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(FIRST, SECOND, THIRD)
    assert [go_back(registry, monkeypatch).version for _ in range(2)] == ["5", "3"]


def test_a_version_that_is_not_the_champion_is_not_gone_back_from(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(FIRST, SECOND, THIRD)
    for version in (3, 5):
        with pytest.raises(InputError, match=f"version {version} of 'x' is not the champion, which is version 7"):
            go_back(registry, monkeypatch, rollback_from=version)
    assert len(registry.terms) == 3
    with pytest.raises(InputError, match="rollback_from is of a rollback"):
        go_back(registry, monkeypatch, rollback_from=7, rollback=False)
