"""What a caller gives becomes one configuration: a file or a mapping, with keys over it."""

from pathlib import Path
from typing import Any

import pytest

import histill
from histill.api.configure import configure
from histill.config.cache_responses import CacheConfig
from histill.config.pretrain_student import PretrainConfig
from histill.config.score_model import ScoreConfig
from histill.errors import InputError
from histill.search.configs import SEARCHES
from histill.search.results import Sweep
from histill.train.launch import Trained

pytestmark = pytest.mark.unit

KEYS: dict[str, Any] = {"name": "first", "runs": "runs", "data": {"tiles": "tiles"}, "teacher": {"classical": True}}


def test_keys_are_over_the_file_section_by_section(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: first\nruns: runs\ndata: {tiles: tiles, batch_size: 8}\nteacher: {classical: true}\n")
    keys = {"data": {"batch_size": 16}, "optimizer.lr": 0.5, "optimizer": {"epochs": 3}}
    for given in (file, str(file)):
        found = configure(PretrainConfig, given, keys, source="pretrain_student")
        assert (found.name, found.data.tiles, found.data.batch_size) == ("first", "tiles", 16)
        assert (found.optimizer.lr, found.optimizer.epochs) == (0.5, 3)


def test_a_configuration_is_taken_as_it_is_or_with_keys_over_it() -> None:
    config = configure(PretrainConfig, KEYS, {}, source="pretrain_student")
    assert configure(PretrainConfig, config, {}, source="pretrain_student") is config
    other = configure(PretrainConfig, config, {"data.batch_size": 4}, local=True, source="pretrain_student")
    assert (other.data.tiles, other.data.batch_size, other.workers.count) == ("tiles", 4, 0)
    with pytest.raises(InputError, match="score_model was given a PretrainConfig; give it a ScoreConfig"):
        configure(ScoreConfig, config, {}, source="score_model")  # type: ignore[arg-type]


def test_paths_and_tile_sets_stand_for_their_addresses() -> None:
    class Opened:
        uri = "s3://bucket/tiles"

    found = configure(
        CacheConfig, None, {"tiles": Opened(), "teacher": {"onnx": Path("a.onnx")}, "output": Path("out")}, source="x"
    )
    assert (found.tiles, found.teacher.onnx, found.output) == ("s3://bucket/tiles", "a.onnx", "out")


def test_what_a_job_returned_stands_for_its_address() -> None:
    run, sweep = Trained("runs/a", "runs/a/model", {}, None), Sweep("runs/s", "val_dice", "gmacs", (), None)
    for made, where in ((run, "runs/a"), (sweep, "runs/s")):
        assert configure(ScoreConfig, None, {"model": made, "held_out": {"tiles": "t"}}, source="x").model == where
    with pytest.raises(InputError, match="'model' holds an object of object, and text was expected; give a text"):
        configure(ScoreConfig, None, {"model": object(), "held_out": {"tiles": "t"}}, source="x")


@pytest.mark.parametrize(("given", "shown"), [(3, "the number 3"), (True, "True"), (None, "None"), ([1], "a list")])
def test_what_is_no_text_is_not_explained_by_yaml(given: Any, shown: str) -> None:
    with pytest.raises(InputError) as caught:
        configure(ScoreConfig, None, {"model": given, "held_out": {"tiles": "t"}}, source="score_model")
    assert str(caught.value) == f"score_model: 'model' holds {shown}, and text was expected; give a text."


def test_what_is_missing_is_asked_for_as_an_argument() -> None:
    with pytest.raises(InputError) as caught:
        configure(ScoreConfig, None, {}, source="score_model")
    assert str(caught.value) == (
        "score_model: 'model' is missing; give model=... in the call. 'held_out.tiles' is missing; give "
        'held_out={"tiles": ...} in the call.'
    )


def test_the_likely_name_is_suggested() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'finetune'; did you mean finetune_student\?"):
        histill.finetune  # noqa: B018
    with pytest.raises(AttributeError, match=r"did you mean score_model\?"):
        histill.score_modle  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute '__wrapped__'$"):
        histill.__wrapped__  # noqa: B018


def test_local_work_needs_no_workers() -> None:
    keys = {"tiles": "tiles", "teacher": {"classical": True}, "output": "out", "workers": {"count": 4}}
    assert configure(CacheConfig, keys, {}, source="x").workers.count == 4
    assert configure(CacheConfig, keys, {}, local=True, source="x").workers.in_process
    scored = {"model": "runs/a", "held_out": {"tiles": "tiles"}, "workers": {"count": 4}}
    assert configure(ScoreConfig, scored, {}, local=True, source="x").workers is None


def test_a_sweep_is_of_the_job_that_it_names() -> None:
    space = {"optimizer.lr": {"loguniform": [1e-4, 1e-2]}}
    found = configure(SEARCHES, KEYS, {"space": space, "trials": 3}, source="search_students")
    assert (found.job, list(found.space)) == ("pretrain_student", ["optimizer.lr"])
    with pytest.raises(InputError, match="job is 'nothing'; it is one of"):
        configure(SEARCHES, KEYS, {"job": "nothing"}, source="search_students")


def test_a_wrong_key_is_named_with_the_function() -> None:
    with pytest.raises(InputError, match=r"pretrain_student: .*batch_siz.*batch_size"):
        configure(PretrainConfig, KEYS, {"data.batch_siz": 3}, source="pretrain_student")
