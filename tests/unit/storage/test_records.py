"""Records: every kind reads what earlier versions wrote, keeps its digest, and refuses truncated or foreign files.

`data/records` holds files as they were written before records had one format (`histill.storage.records`), and the
digests that were computed then.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from histill.artifacts.model_folder import FinishedRun, ModelCard, digest_of
from histill.config.common import Storage
from histill.errors import InputError
from histill.outputs import OutputSpec
from histill.predict.record import PredictionsHeader
from histill.registry.metric_spool import UnsentMetrics
from histill.storage.records import Record, parse_record, parse_records, read_record, record_bytes, write_record
from histill.teachers.cache import CacheHeader
from histill.teachers.onnx import OnnxCard
from histill.teachers.shares import Shares
from histill.tiles.manifest import Header
from histill.tiles.masks import Values
from histill.tiles.parts import PartNote
from histill.tiles.slide_records import SlideRecord, write_slides
from histill.train.claim import ClaimRecord
from histill.train.coverage import DataState
from histill.train.run_folder import RunRecord

pytestmark = pytest.mark.unit

FILES = next(each for each in Path(__file__).parents if each.name == "tests") / "data" / "records"
STORAGE = Storage()
KINDS: dict[str, type[Record]] = {
    "manifest": Header,
    "model": ModelCard,
    "model-first": ModelCard,  # of a version that knew only segmenters
    "responses": CacheHeader,
    "shares": Shares,
    "run": RunRecord,
    "finished": FinishedRun,
    "finished-first": FinishedRun,  # of a version that did not record the name within the folder
    "position": DataState,
    "teacher": OnnxCard,
    "unsent": UnsentMetrics,
    "masks": Values,
    "part": PartNote,  # within the metadata of a Parquet file
    "predictions": PredictionsHeader,
    "claim": ClaimRecord,
}
RELAID = {"model", "model-first", "position", "teacher", "finished-first", "part", "claim"}  # had a different layout
RELAID |= {"responses", "predictions", "manifest"}  # had fewer fields
every_kind = pytest.mark.parametrize("name", KINDS)


def file_of(name: str) -> bytes:
    return (FILES / f"{name}.json").read_bytes()


def load(name: str) -> Any:
    return parse_record(KINDS[name], file_of(name), f"{name}.json")


def holds(new: Any, old: Any) -> bool:
    """Whether `new` has all fields of `old`, at any depth."""
    if isinstance(old, dict):
        return all(key in new and holds(new[key], value) for key, value in old.items())
    return bool(new == old)


@every_kind
def test_what_an_earlier_version_wrote_is_read_and_written_again(name: str, tmp_path: Path) -> None:
    record, uri = load(name), str(tmp_path / "new" / "record.json")
    write_record(record, uri, STORAGE)
    assert read_record(KINDS[name], uri, STORAGE) == record
    written = json.loads(Path(uri).read_bytes())
    assert holds(written, json.loads(file_of(name)))  # nothing is lost; newer fields are added
    if name not in RELAID:
        assert Path(uri).read_bytes() == file_of(name)


def test_digests_are_those_of_the_version_that_wrote() -> None:
    assert {
        "model": digest_of(load("model"), b"weights"),
        "model-first": digest_of(load("model-first"), b"weights"),
        "responses": load("responses").digest,  # in a run's record
        "run": load("run").digest,
        "teacher": hashlib.sha256(load("teacher").model_dump_json(exclude={"license"}).encode() + b"graph").hexdigest(),
    } == {
        "model": "841f849a84417aad358b6217bb1c9bc4cfa7e348724132e2fd7d6677e1ebcad2",
        "model-first": "0b7ade606cf9aaae079087af66645dcf7fd6f1baefaa94f0fe795bbb341f841b",
        "responses": "1d970579e451f0fc545aedb07c7ef0242662172e1a1a592f057e4379b3f5f16e",
        "run": "21ac02302d7262014de19cfa2e85eeb22b19d2c51ce4fc52919647f357cb3109",
        "teacher": "6a4cb7fb48a785eb17f8e4f51876f14f4fb12dcac8a3bf1c1df55d655b7d2707",
    }


def test_files_keep_their_meaning() -> None:
    assert load("model").outputs == OutputSpec("classification", ("stroma", "tumour", "fat"), multi_label=True)
    assert load("model-first").outputs == OutputSpec("segmentation", ("background", "nucleus", "boundary"))
    assert load("model-first").outputs.scored == ("background", "nucleus")
    assert load("responses").outputs == OutputSpec("segmentation", ("background", "nucleus"))
    assert load("finished").model_in("moved/first") == "moved/first/step-00000042"
    assert load("finished").metrics["loss"] is None  # nan
    assert load("finished-first").model_in("moved/first") == "runs/first/step-00000042"
    assert load("predictions").card == load("model")
    assert load("predictions").found.skipped == ("slide b has no tissue",)
    assert load("part").done == {"was turned": (3, "tile-7")}
    assert load("part").meaning == ((0, 0), (255, 1))
    assert load("claim").place == ("host", "boot pid:[1]", 4242, "12345")
    assert load("position").tally == -(2**63) + 1
    assert [tally.undecodable for tally in load("shares").tallies] == [1, 1]


def test_slides_are_a_list_of_records_that_keeps_its_bytes(tmp_path: Path) -> None:
    (record,) = parse_records(SlideRecord, file_of("slides"), "slides.json")
    assert (record.cases, record.origin, record.tile_side) == (("case-1", "case-2"), (128, 256), 443.5643564356436)
    digest = write_slides(str(tmp_path), [record], STORAGE)
    assert digest == "cb38b11f966578fdb4adcacf97886d38de15851e23a5c806d3fc36bec839f76f"  # named by a header
    assert (tmp_path / "slides.json").read_bytes() == file_of("slides")
    with pytest.raises(
        InputError, match=r"^there/slides.json is not the record of a tile set's slides of this version"
    ):
        parse_records(SlideRecord, file_of("slides")[:-4], "there/slides.json")


@every_kind
def test_a_file_that_is_cut_short_or_anothers_is_refused_in_a_sentence(name: str) -> None:
    whole, kind = file_of(name), KINDS[name]
    fields = json.loads(whole)
    others = [{**fields, "of_a_later_version": 1}, {key: [[]] for key in fields}, [fields], None, "text"]
    foreign = [file_of(other) for other in KINDS if not issubclass(KINDS[other], kind)]
    cut = [whole[: len(whole) * part // 7] for part in range(7)]
    for data in (*cut, *foreign, *(json.dumps(each).encode() for each in others), b"\xff\xfe"):
        with pytest.raises(InputError) as caught:
            parse_record(kind, data, f"there/{name}.json")
        said = str(caught.value)
        assert said.startswith(f"there/{name}.json is not {kind.noun} of this version (")
        assert said.endswith(f"); {kind.remedy}.")
        assert "\n" not in said
        assert len(said) < 500


def test_a_file_that_is_missing_is_another_matter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(Header, str(tmp_path / "manifest.json"), STORAGE)


def test_floats_survive_to_the_last_bit(tmp_path: Path) -> None:
    record = load("run")
    values = [0.1, 1e-5, 5e-324, 1.7976931348623157e308, 0.0013, 2 / 3, 1e16, 123456789.123456789]
    record = record.model_copy(update={"config": {"values": values, "count": 2**62, "text": "é\u2028"}})
    again = parse_record(RunRecord, record_bytes(record), "run.json")
    assert again == record
    assert again.digest == record.digest
