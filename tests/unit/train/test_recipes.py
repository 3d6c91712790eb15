"""Kinds of runs: one file each, one line in the table, and a sweep configuration generated from it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from histill.config.load import validate
from histill.errors import HistillError
from histill.search import configs
from histill.search.configs import SEARCHES
from histill.search.sweep import _restore_tuner
from histill.tiles.manifest import Manifest
from histill.train.recipes import RECIPES

pytestmark = pytest.mark.unit


@pytest.fixture
def keys(tmp_path: Path, tile_set: Callable[..., Manifest]) -> dict[str, Any]:
    tiles = tile_set(tmp_path / "tiles", tiles=12)
    return {
        "name": "one",
        "runs": str(tmp_path / "runs"),
        "data": {"tiles": tiles.uri, "batch_size": 4},
        "teacher": {"classical": True},
        "student": {"encoder": "csat_tiny"},
    }


@pytest.mark.parametrize("kind", RECIPES)
def test_the_table_names_the_kinds_as_their_records_do(kind: str) -> None:
    recipe = RECIPES[kind]
    assert recipe.config.kind == kind
    assert issubclass(SEARCHES.models[kind], recipe.config)


def test_a_sweep_is_pickled_by_name(keys: dict[str, Any]) -> None:
    """Tune pickles it into its state, which a later process reads."""
    space = {"loss.soft_cross_entropy.temperature": {"uniform": (1.0, 2.0)}}
    config = validate(SEARCHES.models["pretrain_student"], keys | {"space": space}, "the test")
    assert b"histill.search.configs" in pickle.dumps(config)
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - of this test's own
    with pytest.raises(AttributeError, match="NothingSearch"):
        _ = configs.NothingSearch


def test_tunes_state_of_another_version_is_refused_in_a_sentence(
    keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"loss.soft_cross_entropy.temperature": {"uniform": (1.0, 2.0)}}
    config = validate(SEARCHES.models["pretrain_student"], keys | {"space": space}, "the test")

    def restore(*_: Any, **__: Any) -> None:
        pickle.loads(b"chistill.search.gone\nName\n.")  # noqa: S301 - a class that does not exist

    monkeypatch.setattr(tune.Tuner, "restore", restore)
    with pytest.raises(
        HistillError, match=r"/one/tune was saved by another version of histill .* new trials are drawn"
    ):
        _restore_tuner("tune", None, None, config)
