"""The run folder: which keys may change between two starts of a run, and which may not."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from histill.artifacts.model_folder import CARD_NAME, resolve
from histill.config.common import Storage
from histill.config.load import set_value, validate
from histill.config.pretrain_student import PretrainConfig
from histill.config.train_teacher import TeacherConfig
from histill.errors import InputError
from histill.storage.uris import name_within
from histill.train.run_folder import open_record, remove_orphans, run_uri, save_record, write_result

pytestmark = pytest.mark.unit


def config(folder: Path, **changes: Any) -> PretrainConfig:
    data: dict[str, Any] = {
        "name": "first",
        "runs": str(folder),
        "data": {"tiles": "tiles"},
        "teacher": {"classical": True},
    }
    for key, value in changes.items():
        data = set_value(data, key.replace("__", "."), value)
    return validate(PretrainConfig, data, "test")


def started(folder: Path) -> PretrainConfig:
    first = config(folder)
    save_record(first, open_record(first).model_copy(update={"tracking_run": "abc"}))
    return first


def test_a_new_run_has_a_fresh_record(tmp_path: Path) -> None:
    record = open_record(config(tmp_path))
    assert record.tracking_run is None
    assert not (tmp_path / "first").exists()


def test_the_same_configuration_goes_on_with_its_tracked_run(tmp_path: Path) -> None:
    first = started(tmp_path)
    assert open_record(first).tracking_run == "abc"


@pytest.mark.parametrize(
    "change",
    [
        {"workers__count": 4},
        {"workers__count": {"min": 1, "max": 4}},
        {"workers__cpus": 0.5},
        {"data__decode": "cluster", "data__decode_nodes": {"pool": "cpu"}},
        {"storage__endpoint": "http://elsewhere:9000"},
        {"tracking__uri": "http://elsewhere:5000"},
        {"max_failures": 0},
        {"checkpoint_every": 7},
        {"data__decode_threads": 5},
        {"data__max_corrupt": 3},
    ],
)
def test_how_the_work_is_carried_out_may_change(tmp_path: Path, change: dict[str, Any]) -> None:
    started(tmp_path)
    assert open_record(config(tmp_path, **change)).tracking_run == "abc"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"optimizer__lr": 0.5}, "optimizer.lr was 0.001 and is now 0.5"),
        ({"data__batch_size": 64}, "data.batch_size was 32 and is now 64"),
        ({"student__size_px": 64}, "student.size_px was None and is now 64"),
        ({"responses": "cache"}, "responses was None and is now 'cache'"),
        ({"data__tiles": "others"}, "data.tiles was 'tiles' and is now 'others'"),
        ({"student__decoder_channels": (8, 8, 8, 8, 8)}, "student.decoder_channels was"),
    ],
)
def test_what_is_computed_may_not_and_the_key_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    started(tmp_path)
    with pytest.raises(InputError) as caught:
        open_record(config(tmp_path, **change))
    assert sentence in str(caught.value)
    assert run_uri(config(tmp_path)) in str(caught.value)


def test_another_kind_of_run_is_named(tmp_path: Path) -> None:
    started(tmp_path)
    data = {"name": "first", "runs": str(tmp_path), "data": {"tiles": "tiles"}}
    with pytest.raises(InputError, match="it is a pretrain_student run"):
        open_record(validate(TeacherConfig, data, "test"))


def test_a_key_that_an_older_version_did_not_know_is_named(tmp_path: Path) -> None:
    first = config(tmp_path)
    record = open_record(first)
    older = {key: value for key, value in record.config.items() if key != "seed"}
    save_record(first, record.model_copy(update={"config": older}))
    with pytest.raises(InputError, match="seed was None"):
        open_record(first)


def test_a_key_that_an_older_version_did_not_know_and_that_is_not_set_changes_nothing(tmp_path: Path) -> None:
    first = config(tmp_path)
    record = open_record(first)
    older = {key: value for key, value in record.config.items() if key != "continue_from"}
    save_record(first, record.model_copy(update={"config": older}))
    assert open_record(first).config == older


def test_a_finished_name_is_refused_whatever_the_configuration(tmp_path: Path) -> None:
    first = started(tmp_path)
    write_result(first, str(tmp_path / "first" / "model"), {"val_dice": 0.5})
    for again in (first, config(tmp_path, optimizer__lr=0.5)):
        with pytest.raises(InputError, match=r"is finished; .* with continue_from=.* to train it longer"):
            open_record(again)


def test_a_run_that_was_copied_or_moved_means_its_own_model(tmp_path: Path) -> None:
    first, kept, moved = started(tmp_path), tmp_path / "kept", tmp_path / "elsewhere" / "moved"
    (tmp_path / "first" / "step-1").mkdir()
    (tmp_path / "first" / "step-1" / CARD_NAME).touch()
    write_result(first, str(tmp_path / "first" / "step-1"), {})
    shutil.copytree(tmp_path / "first", kept)
    assert resolve(str(kept), Storage()) == str(kept / "step-1")
    shutil.copytree(kept, moved)
    write_result(first, str(tmp_path / "first" / "step-2"), {})  # trained again
    assert resolve(str(tmp_path / "first"), Storage()) == str(tmp_path / "first" / "step-2")
    assert resolve(str(moved), Storage()) == str(moved / "step-1")


def test_a_model_that_lies_elsewhere_is_found_there(tmp_path: Path) -> None:
    first = started(tmp_path)
    write_result(first, "s3://bucket/models/one", {})
    assert resolve(run_uri(first), Storage()) == "s3://bucket/models/one"
    assert name_within("s3://b/runs/first/", "s3://b/runs/first/step-1") == "step-1"
    assert name_within("s3://b/runs/first", "s3://b/runs/first-2/step-1") is None
    assert name_within("runs/first", str(Path.cwd() / "runs" / "first" / "step-1")) == "step-1"


def test_a_span_of_workers_may_become_a_number_again(tmp_path: Path) -> None:
    first = config(tmp_path, workers__count={"min": 1, "max": 4})
    save_record(first, open_record(first).model_copy(update={"tracking_run": "abc"}))
    assert open_record(config(tmp_path)).tracking_run == "abc"


def test_checkpoints_that_nobody_knows_of_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("step-00000002", "step-00000004", "step-00000006", "stepping", "other"):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "file").write_text(name)
    (tmp_path / "run.json").write_text("{}")
    remove_orphans(LocalFileSystem(), str(tmp_path), {"step-00000004", "step-00000006"})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["other", "run.json", "step-00000004", "step-00000006", "stepping"]
    assert (tmp_path / "step-00000006" / "below" / "file").read_text() == "step-00000006"
    remove_orphans(LocalFileSystem(), str(tmp_path), [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run.json", "stepping"]
