"""The last line of a command: the next one that it names is a command, with keys that it takes."""

import shlex
from typing import Any

import pytest

from histill.cli.closing import close_job
from histill.cli.verbs import Verb, find_verb, load_object
from histill.config.command import format_command, list_changed_keys
from histill.config.load import load_config
from histill.config.score_model import ScoreConfig

pytestmark = pytest.mark.unit

RUN = ["name=a", "runs=r s", "data.tiles=t", "tracking.uri=http://127.0.0.1:5000"]
MADE = {"run": "r s/a", "trials": 3}
INGEST = ["output=t", "images.index=i.csv", "images.mpp=0.5", "tile_px=224"]
SET, RESPONSES = "t, a tile set of 1,200 tiles", "o/1234, a teacher's cached responses"
COUNTS: dict[str, Any] = {"tiles": 1200, "masks": 0, "classes": {}, "splits": {"train": 1000, "val": 200}}
CACHE = ["tiles=t", "output=o", "storage.endpoint=http://127.0.0.1:8333"]
CACHED: dict[str, Any] = {"responses": "o/1234", "width": None, "dense": True}
SCORE = ["model=r/a", "held_out.tiles=t"]
PROMOTE = ["registered_name=nuclei", "model=r/a", "held_out.tiles=t"]


def verb_of(job: str) -> Verb:
    found = find_verb(job=job)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("job", "keys", "values", "made", "named"),
    [
        ("ingest_tiles", INGEST, COUNTS, SET, "cache tiles=t teacher.classical=true output=responses"),
        (
            "ingest_tiles", ["output=s3://b/t/x", *INGEST[1:]], COUNTS, "s3://b/t/x, a tile set of 1,200 tiles",
            "cache tiles=s3://b/t/x teacher.classical=true output=s3://b/t/responses",
        ),
        ("ingest_tiles", INGEST, COUNTS | {"masks": 3}, SET, "train name=teacher runs=runs data.tiles=t"),
        ("ingest_tiles", INGEST, COUNTS | {"classes": {"a": {}}}, SET, "train"),
        (
            "ingest_tiles", [*INGEST, "split={train: 0, val: 0, test: 1}"],
            COUNTS | {"classes": {"a": {}}, "splits": {"test": 1200}}, SET, "score model=MODEL held_out.tiles=t",
        ),
        ("cache_responses", [*CACHE, "teacher.classical=true"], CACHED, RESPONSES, "pretrain"),
        (
            "cache_responses", [*CACHE, "teacher.model=r/high"], CACHED | {"dense": False},
            RESPONSES, "distill name=NAME runs=runs data.tiles=t teacher.model=r/high responses=o/1234",
        ),
        (
            "cache_responses", [*CACHE, "teacher.encoder.folder=e", "teacher.encoder.preset=uni"],
            CACHED | {"width": 1024}, RESPONSES, "pretrain",
        ),
        ("train_teacher", RUN, MADE, "'r s/a', a teacher", "cache tiles=t 'teacher.model=r s/a' output=responses"),
        (
            "pretrain_student", [*RUN, "teacher.classical=true", "student.encoder=csat_fine"], MADE,
            "'r s/a', a pretrained student", "finetune name=NAME 'runs=r s' 'encoder=r s/a' student.encoder=csat_fine "
            "data.tiles=TILES target=classification",
        ),
        ("finetune_student", [*RUN, "target=segmentation"], MADE, "'r s/a', a student", "score"),
        ("distill_student", [*RUN, "teacher.model=r/high"], MADE, "'r s/a', a student", "score 'model=r s/a'"),
        (
            "prune_student", [*RUN, "teacher.model=r/a", "continue_from=r/a"], MADE, "'r s/a', a student",
            "score 'model=r s/a'",
        ),
        (
            "search_students", [*RUN, "job=train_teacher", "space.optimizer.lr.loguniform=[0.1, 1]"], MADE,
            "'r s/a', the best student of 3 trials", "score 'model=r s/a' held_out.tiles=t report=report.html",
        ),
        ("score_model", [*SCORE, "report=a.html"], {"probe": {}}, "a.html, a report", "promote model=r/a"),
        (
            "score_model", [*SCORE, "report=a.html"], {"probe": {"C": 1.0}}, "a.html, a report",
            "finetune name=NAME runs=r encoder=r/a data.tiles=t target=classification",
        ),
        (
            "promote_model", PROMOTE, {"decision": "promoted"}, "models:/nuclei@champion, the champion",
            "predict model=models:/nuclei@champion tiles=t output=predictions",
        ),
        (
            "promote_model", ["registered_name=nuclei", "rollback=true"], {"decision": "rolled back"},
            "models:/nuclei@champion, the champion", "predict model=models:/nuclei@champion tiles=TILES",
        ),
        (
            "convert_encoder", ["weights=w.bin", "output=e", "preset=uni"], {"folder": "e"}, "e, an encoder",
            "cache tiles=TILES teacher.encoder.folder=e teacher.encoder.preset=uni",
        ),
    ],
)  # fmt: skip
def test_the_next_command_takes_the_keys_that_it_is_named_with(
    job: str, keys: list[str], values: dict[str, Any], made: str, named: str
) -> None:
    config = load_config(load_object(verb_of(job).config), None, keys)
    line = close_job(job, config, values)
    assert line is not None
    assert f"{line} ".startswith(f"made {made}; next: histill {named} "), line
    _, name, *words = shlex.split(line.partition("; next: ")[2])
    following = find_verb(name=name)
    assert following is not None
    read = load_config(load_object(following.config), None, words)  # nothing that it needs is missing
    for section in ("storage", "tracking"):
        if section in type(config).model_fields and section in type(read).model_fields:
            assert getattr(read, section) == getattr(config, section)


def test_a_set_that_nothing_can_be_trained_on_is_made_again() -> None:
    config = load_config(load_object(verb_of("ingest_tiles").config), None, INGEST)
    line = close_job("ingest_tiles", config, COUNTS | {"masks": 3, "splits": {"train": 1200, "val": 0}})
    assert line == (
        "made t, a tile set of 1,200 tiles without any for val; "
        "next: the same command with another output and split.pinned.val=[CASE]"
    )


def test_a_score_without_a_report_says_how_to_get_one() -> None:
    config = load_config(ScoreConfig, None, SCORE)
    line = close_job("score_model", config, {"probe": {}})
    assert line is not None
    assert line.startswith("scored r/a; report=report.html writes the same as a page; next: histill promote model=r/a ")


def test_exports_are_counted_without_those_that_were_skipped() -> None:
    keys = ["model=m", "tiles=t", "output=my exports", "formats=[onnx, smp]"]
    config = load_config(load_object(verb_of("export_model").config), None, keys)
    line = close_job("export_model", config, {"formats": [{"files": {"model.onnx": 3}}, {"files": {}}]})
    assert line == "made 'my exports', 1 format; next: README.md there says what each file is"


def test_embeddings_are_called_so() -> None:
    config = load_config(load_object(verb_of("embed_tiles").config), None, ["model=m", "tiles=t", "output=o"])
    line = close_job("embed_tiles", config, {"predictions": "o/1", "tiles": 158, "heatmaps": 0})
    assert line is not None
    assert line.startswith("made o/1, embeddings of 158 tiles; next: read features/*.h5 of that folder")


def test_nothing_is_said_of_what_was_not_made() -> None:
    config = load_config(load_object(verb_of("promote_model").config), None, PROMOTE)
    assert close_job("promote_model", config, {"decision": "refused"}) is None
    assert close_job("sync_metrics", config, {}) is None


def test_a_command_is_read_back_as_it_was_meant() -> None:
    keys = ["model=r/a b", "held_out.tiles='007'", "held_out.reference.onnx=a.onnx", "encoder.mean=[0.5, 0.5, 1.0]"]
    config = load_config(ScoreConfig, None, keys)
    command = format_command("score_model", list_changed_keys(config))
    assert command.startswith("histill score ")
    assert load_config(ScoreConfig, None, shlex.split(command)[2:]) == config
