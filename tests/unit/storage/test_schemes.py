"""One file is a whole storage scheme: the example in docs/extend.md supports everything that histill stores."""

import importlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import torch

import histill.storage.schemes
import histill.tiles.ingest
from histill.artifacts.model_folder import FinishedRun, ModelCard, build, load, save
from histill.config import places
from histill.config.check_cluster import CheckConfig
from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.config.places import read_place
from histill.config.predict_tiles import PredictConfig
from histill.config.pretrain_student import PretrainConfig
from histill.errors import InputError, UnavailableError
from histill.predict.shard import PredictionJob, PredictionWorker
from histill.preflight.connectivity import CONDITIONAL, READ, WRITE, check_connectivity
from histill.storage import control, retry, scheme
from histill.storage.filesystems import arrow_filesystem, storage_errors
from histill.storage.retry import with_retries
from histill.storage.retrying import retrying_filesystem
from histill.storage.tables import write_table
from histill.stream.read import ReadRequest, ShardReader, TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.testing.storage_schemes import check_storage
from histill.tiles.ingest import ingest
from histill.tiles.manifest import Manifest
from histill.tiles.shards import shards_of
from histill.tiles.whole_table import read_table
from histill.train.claim import CLAIM_NAME, describe_process, hold_claim
from histill.train.run_folder import open_record, read_result, save_record, write_result

pytestmark = pytest.mark.unit

STORAGE = Storage()
PX, TILES = 32, 12
EXTEND = Path(__file__).parents[3] / "docs" / "extend.md"


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[ModuleType]:
    """The example's module, as if it were in `schemes/`."""
    section = EXTEND.read_text().split("\n## A storage scheme\n")[1].split("\n## ")[0]
    (tmp_path / "memory.py").write_text(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0])
    folders = histill.storage.schemes.__path__
    folders.append(str(tmp_path))
    forget()
    module = importlib.import_module("histill.storage.schemes.memory")
    yield module
    module.Memory.store.clear()
    folders.remove(str(tmp_path))
    del histill.storage.schemes.memory, importlib.sys.modules[module.__name__]
    forget()


def forget() -> None:
    importlib.invalidate_caches()
    places._is_remote.cache_clear()
    scheme._entry.cache_clear()


def test_the_example_keeps_all_that_is_asked_of_it(memory: ModuleType) -> None:
    check_storage("memory://bucket/a/b", STORAGE)
    assert memory.Memory.store == {}


def test_local_paths_do_so_too(tmp_path: Path) -> None:
    check_storage(str(tmp_path / "folder"), STORAGE)


def test_a_scheme_that_writes_over_what_is_there_is_found_out(
    memory: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(filesystem: Any, path: str, *data: bytes) -> bool:
        filesystem.pipe_file(path, data[-1])
        return True

    for part in ("create", "swap"):
        with monkeypatch.context() as patch:
            patch.setattr(memory, "SCHEME", replace(memory.SCHEME, **{part: careless}))
            scheme._entry.cache_clear()
            with pytest.raises(AssertionError):
                check_storage("memory://bucket", STORAGE)


def test_its_addresses_are_read_and_misspelt_ones_are_refused_as_those_of_s3_are(memory: ModuleType) -> None:
    assert read_place("memory://bucket/x") == "memory://bucket/x"
    for text, said in {
        "memory//bucket": "a colon is missing; write memory://",
        "MEMORY://bucket/x": "in small letters",
        "memory://": "names no bucket; write memory://",
        "memory://bucket/../x": "a folder of the memory:// address",
        "memory://user:secret@bucket/x": "holds credentials",
    }.items():
        with pytest.raises(ValueError, match=said) as raised:
            read_place(text)
        assert "secret" not in str(raised.value)


def test_without_the_file_its_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match="memory: addresses are neither read nor written"):
        read_place("memory://bucket/x")


@pytest.fixture
def both(memory: ModuleType, tmp_path: Path) -> list[Manifest]:
    """One set of images, ingested on the disk and in memory, by this process."""
    sets = []
    for root in (str(tmp_path / "disk"), "memory://bucket"):
        index = ["image,case"]
        for number in range(TILES):
            pixels = np.random.default_rng(number).integers(60, 220, (PX, PX, 3), dtype=np.uint8)
            control.write_bytes(f"{root}/images/{number}.jpg", simplejpeg.encode_jpeg(pixels), STORAGE)
            index.append(f"./{number}.jpg,c{number}")
        control.write_bytes(f"{root}/images/index.csv", "\n".join(index).encode(), STORAGE)
        config = {
            "output": f"{root}/tiles", "tile_px": PX, "rows_per_shard": 6, "rows_per_group": 3, "workers": {"count": 0},
            "images": {"index": f"{root}/images/index.csv", "mpp": 0.5},
        }  # fmt: skip
        report = ingest(validate(IngestConfig, config, "test"))
        assert (report.reused, report.skipped) == (False, ())
        assert ingest(validate(IngestConfig, config, "test")).reused
        sets.append(report.manifest)
    return sets


def tiles_of(manifest: Manifest) -> dict[str, np.ndarray]:
    source = TileSource(manifest.uri, manifest.header.digest, STORAGE)
    stream = TileStream(manifest, source, "", Views(PX), 4, 0, 1, only=np.arange(TILES))
    names = read_table(manifest)["tile_id"].to_pylist()
    return {
        names[int(row)]: batch.student[place].numpy().copy()
        for batch in stream.exact_pass()
        for place, row in enumerate(batch.index)
        if batch.valid[place]
    }


def test_tiles_are_ingested_streamed_and_predicted_as_on_a_disk(both: list[Manifest], tmp_path: Path) -> None:
    on_disk, in_memory = both
    assert in_memory.uri == "memory://bucket/tiles"
    assert read_table(in_memory).equals(read_table(on_disk))
    pixels = [tiles_of(manifest) for manifest in both]
    assert len(pixels[0]) == TILES
    for name, tile in pixels[0].items():
        np.testing.assert_array_equal(pixels[1][name], tile)

    card = ModelCard(
        encoder="csat_tiny", mean=(0.5,) * 3, std=(0.2,) * 3, tile_px=PX, tile_mpp=0.5, size_px=PX, train_cases=(),
        tiles_digest="tiles", histill="0", kind="classification", decoder_channels=(), classes=("stroma", "tumor"),
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    save(str(folder), build(card), card)
    written = []
    for manifest, root in zip(both, (str(tmp_path / "disk"), "memory://bucket"), strict=True):
        for file in folder.iterdir():  # as Ray Train does
            control.write_bytes(f"{root}/model/{file.name}", file.read_bytes(), STORAGE)
        config = {"model": f"{root}/model", "tiles": manifest.uri, "output": f"{root}/out", "batch_size": 4}
        digest = load(f"{root}/model", STORAGE)[2]
        job = PredictionJob(
            validate(PredictConfig, config, "test"), f"{root}/model", manifest.uri, f"{root}/out", digest,
            manifest.header.digest, manifest.header.tiles,
        )  # fmt: skip
        worker = PredictionWorker(job)
        assert [sum(each["tiles"] for each in worker(name)["slides"]) for name in manifest.shards()] == [6, 6]
        written.append([control.read_bytes(f"{root}/out/{shard.shard}", STORAGE) for shard in shards_of(manifest)])
    assert written[0] == written[1]


def test_a_runs_record_and_claim_are_kept_there(memory: ModuleType) -> None:
    config = validate(
        PretrainConfig,
        {"name": "first", "runs": "memory://b/runs", "data": {"tiles": "t"}, "teacher": {"classical": True}},
        "test",
    )
    record = open_record(config)
    save_record(config, record)
    assert open_record(config) == record
    uri = f"memory://b/runs/first/{CLAIM_NAME}"
    dead = {
        "token": "of a job that is no more",
        "place": (*describe_process()[:3], "before this process began"),
        "renewed": 1,
    }
    control.write_json(uri, dead, STORAGE)
    with hold_claim("memory://b/runs/first", STORAGE):
        assert control.exists(uri, STORAGE)
        with pytest.raises(InputError, match="another job"), hold_claim("memory://b/runs/first", STORAGE):
            pass
    assert not control.exists(uri, STORAGE)
    write_result(config, "memory://b/runs/first/step-00000001", {"dice": 1.0})
    assert read_result(config) == FinishedRun(
        model="memory://b/runs/first/step-00000001", name="step-00000001", metrics={"dice": 1.0}
    )
    with pytest.raises(InputError, match="is finished"):
        open_record(config)


def test_the_preflight_reads_and_writes_there(memory: ModuleType) -> None:
    control.write_bytes("memory://b/tiles/shards/one", b"1", STORAGE)
    found = check_connectivity(validate(CheckConfig, {"read": "memory://b/tiles", "write": "memory://b/runs"}, "test"))
    assert {check: verdict.state for check, verdict in found.items()} == {
        READ: "ok", WRITE: "ok", CONDITIONAL: "ok",
    }  # fmt: skip
    nothing = check_connectivity(validate(CheckConfig, {"read": "memory://b/none"}, "test"))
    assert nothing[READ].state == "failed"
    assert control.list_files("memory://b/runs", STORAGE) == []


def test_its_own_words_make_the_sentences(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusal(Exception):
        pass

    Refusal.__module__ = "its_client.errors"
    texts = scheme.ErrorTexts(missing_bucket=("no room",), refused=((("not you",), "denied access"),))
    entry = replace(
        memory.SCHEME, errors=texts, packages=("its_client",), server=lambda _: "the memory", credentials="set KEY",
        transient_reason=lambda error: "tired" if "tired" in str(error) else None,
    )  # fmt: skip
    monkeypatch.setattr(memory, "SCHEME", entry)
    uri = "memory://b/x"
    for error, kind, said in (
        (Refusal("not you"), InputError, f"the memory denied access for {uri}; set KEY that may use this bucket"),
        (FileNotFoundError("no room"), InputError, f"the bucket of {uri} does not exist"),
        (OSError("tired"), UnavailableError, f"the memory does not serve {uri} at present \\(tired\\)"),
        (FileNotFoundError("other"), FileNotFoundError, "other"),
        (KeyError("a fault of ours"), KeyError, "a fault of ours"),
    ):
        with pytest.raises(kind, match=said), storage_errors(uri, STORAGE):
            raise error

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("not you")

    monkeypatch.setattr(memory.Memory, "info", refuse)
    monkeypatch.setattr(memory.Memory, "_open", refuse)
    filesystem, path = arrow_filesystem(uri, STORAGE)
    for open_file in (filesystem.open_input_file, filesystem.open_input_stream):
        with pytest.raises(InputError, match="denied access"), storage_errors(uri, STORAGE):
            open_file(path)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    left = iter([OSError("tired"), OSError("tired")])

    def read() -> str:
        for error in left:
            raise error
        return "read"

    assert with_retries(read, STORAGE, uri=uri) == "read"


def test_a_package_that_is_missing_is_named(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def need(uri: str, storage: Storage) -> Any:
        raise ImportError("No module named 'gcsfs'")

    monkeypatch.setattr(memory, "SCHEME", replace(memory.SCHEME, open_control=need, package="gcsfs"))
    with pytest.raises(InputError, match=r"memory://b/x needs the package gcsfs, which is not installed; `pip install"):
        control.read_bytes("memory://b/x", STORAGE)


def test_clients_are_opened_again_once_their_keys_are_others(
    memory: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = pa.schema([("tile_id", pa.string()), ("image", pa.binary())])
    write_table("memory://b/set/shards/0.parquet", [pa.table([["t"], [b"1"]], schema=schema)], schema, STORAGE)
    key, opened = ["first"], []

    def open_control(uri: str, storage: Storage) -> Any:
        opened.append(key[0])
        return memory.Memory()

    entry = replace(memory.SCHEME, open_control=open_control, keys=lambda uri, storage: key[0])
    monkeypatch.setattr(memory, "SCHEME", entry)
    scheme._entry.cache_clear()
    filesystem, path = retrying_filesystem("memory://b/runs", STORAGE)
    reader, source = ShardReader(), TileSource("memory://b/set", "digest", STORAGE)
    request = ReadRequest("shards/0.parquet", 0, np.arange(1), np.arange(1))
    for now in ("first", "second"):
        key[0] = now
        for _ in range(2):
            filesystem.get_file_info(path)
            assert reader.read(source, request).num_rows == 1
    assert opened == ["first", "first", "second", "second"]  # one of each per client
