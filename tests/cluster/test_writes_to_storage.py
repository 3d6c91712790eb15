"""Writes to a real S3 server: whole or absent, by one of several at once, under any name."""

import asyncio
import json
import os
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from pyarrow import fs
from ray.train import Checkpoint
from ray.train.v2._internal.execution.storage import StorageContext

import histill.teachers.cache as caching
import histill.tiles.ingest as ingesting
from histill.config.cache_responses import CacheConfig
from histill.config.common import Storage
from histill.config.ingest_tiles import IngestConfig
from histill.config.load import validate
from histill.errors import InputError
from histill.local.s3 import REGION, S3Server
from histill.storage import control
from histill.storage.filesystems import arrow_filesystem, control_filesystem
from histill.storage.retrying import retrying_filesystem
from histill.storage.schemes import s3 as objects
from histill.storage.tables import read_columns, write_table
from histill.stream.read import TileSource
from histill.stream.tile_stream import TileStream
from histill.stream.views import Views
from histill.testing.storage_schemes import check_storage
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest
from histill.tiles.whole_table import read_table
from testbed.fault_proxy import Faults, fault_proxy

pytestmark = pytest.mark.cluster

FOLDER = "s3://tests/writes"


@pytest.fixture
def storage(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return Storage(endpoint=s3.endpoint, region=REGION)


def test_all_that_is_asked_of_any_storage(storage: Storage) -> None:
    """One of several writers creates or swaps a file, and the rest of histill.testing.storage_schemes."""
    check_storage(f"{FOLDER}/checked", storage)


ODD = ["a+b c", "100%25 50%", "Präparat 患者 é", "what?#1", "q&a=b;c'$,@", "[x]{y}*~!", "pipe|hat^`"]


@pytest.mark.parametrize("name", ODD)
def test_any_name_goes_through_all_clients(
    storage: Storage, tile_set: Callable[..., Manifest], tmp_path: Path, name: str
) -> None:
    root = f"{FOLDER}/odd/{name}"
    manifest = tile_set(f"{root}/tile set {name}", tiles=8, tile_px=32, storage=storage)  # both of our clients
    assert read_table(read_manifest(manifest.uri, storage)).equals(read_table(manifest))
    source = TileSource(manifest.uri, manifest.header.digest, storage)
    tiles = TileStream(manifest, source, "", Views(32), 4, 0, 1, only=np.arange(8))
    assert sum(int(batch.valid.sum()) for batch in tiles.exact_pass()) == 8
    names = read_table(manifest)["shard"].unique().to_pylist()
    assert control.measure_files(manifest.uri, names, storage).keys() == set(names)
    assert control.create_bytes(f"{root}/claim {name}", b"1", storage)
    assert control.swap_bytes(f"{root}/claim {name}", b"1", b"2", storage)
    assert control.list_files(root, storage) == [f"{root}/claim {name}"]
    control.probe(root, storage)
    control.remove(f"{root}/claim {name}", storage)
    assert not control.exists(f"{root}/claim {name}", storage)

    (tmp_path / "model.bin").write_bytes(b"weights")  # Ray Train's own way, by our file system
    filesystem, path = retrying_filesystem(root, storage)
    context = StorageContext(path, f"run {name}", storage_filesystem=filesystem)
    kept = context.persist_current_checkpoint(Checkpoint.from_directory(str(tmp_path)), "checkpoint_1")
    with kept.as_directory() as folder:
        assert Path(folder, "model.bin").read_bytes() == b"weights"
    listed = arrow_filesystem(root, storage)[0].get_file_info(fs.FileSelector(f"{path}/run {name}/checkpoint_1"))
    assert [found.base_name for found in listed] == ["model.bin"]
    assert control.read_bytes(f"{root}/run {name}/checkpoint_1/model.bin", storage) == b"weights"


def uploads_of(storage: Storage) -> list[str]:
    found = control_filesystem(FOLDER, storage)[0].call_s3("list_multipart_uploads", Bucket="tests")
    return [each["Key"] for each in found.get("Uploads", ())]


def test_an_upload_of_several_parts_that_fails_is_gone(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_PART_BYTES", 5 * 2**20)
    filesystem, _ = control_filesystem(FOLDER, storage)
    data, call = os.urandom(21 * 2**20), filesystem._call_s3

    async def failing(method: str, *arguments: Any, **options: Any) -> Any:
        if method == "upload_part" and options["PartNumber"] == 4:
            await asyncio.sleep(0)
            raise OSError("the network is gone")
        return await call(method, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "_call_s3", failing)
        with pytest.raises(InputError, match="the network is gone"):
            control.write_bytes(f"{FOLDER}/large", data, storage)
    assert not control.exists(f"{FOLDER}/large", storage)
    assert uploads_of(storage) == []
    control.write_bytes(f"{FOLDER}/large", data, storage)
    assert control.read_bytes(f"{FOLDER}/large", storage) == data


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_ends_a_shard_ends_its_upload(storage: Storage, error: type[BaseException]) -> None:
    schema = pa.schema([("image", pa.binary())])

    def groups(last: Callable[[], None]) -> Iterator[pa.Table]:
        for _ in range(3):
            yield pa.table([[os.urandom(1 << 20)] * 8], schema=schema)
        last()

    def fail() -> None:
        raise error

    folder = f"{FOLDER}/{error.__name__}"
    uri = f"{folder}/shard.parquet"
    with pytest.raises(error):
        write_table(uri, groups(fail), schema, storage)
    assert not control.exists(uri, storage)
    assert uploads_of(storage) == []
    size = write_table(uri, groups(lambda: None), schema, storage)
    assert control.measure_files(folder, ["shard.parquet"], storage) == {"shard.parquet": size}
    assert len(read_columns(uri, ["image"], storage) or ()) == 24


def test_a_bucket_that_keeps_versions(storage: Storage, tile_set: Callable[..., Manifest]) -> None:
    filesystem, _ = control_filesystem(FOLDER, storage)
    filesystem.mkdir("versions")
    filesystem.call_s3("put_bucket_versioning", Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    uri = "s3://versions/state"
    for content in (b"one", b"two"):
        control.write_bytes(uri, content, storage)
    assert len(filesystem.call_s3("list_object_versions", Bucket="versions", Prefix="state")["Versions"]) == 2
    assert control.read_bytes(uri, storage) == b"two"
    assert not control.create_bytes(uri, b"three", storage)
    assert control.swap_bytes(uri, b"two", b"three", storage)
    assert control.read_bytes(uri, storage) == b"three"
    control.remove(uri, storage)  # leaves a marker on top of the versions
    assert not control.exists(uri, storage)
    with pytest.raises(FileNotFoundError):
        control.read_bytes(uri, storage)
    assert control.list_files("s3://versions", storage) == []
    assert control.create_bytes(uri, b"again", storage)
    assert control.list_files("s3://versions", storage) == [uri]
    steady, path = retrying_filesystem("s3://versions/run", storage)
    steady.create_dir(path)
    with steady.open_output_stream(f"{path}/model") as stream:
        stream.write(b"weights")
    steady.delete_dir(path)
    assert steady.get_file_info(f"{path}/model").type == fs.FileType.NotFound
    manifest = tile_set("s3://versions/tiles", tiles=8, tile_px=32, storage=storage)
    again = tile_set("s3://versions/tiles", tiles=8, tile_px=32, seed=1, storage=storage)
    assert again.header.digest != manifest.header.digest
    source = TileSource(again.uri, again.header.digest, storage)
    tiles = TileStream(again, source, "", Views(32), 4, 0, 1, only=np.arange(8))
    assert sum(int(batch.valid.sum()) for batch in tiles.exact_pass()) == 8


def test_jobs_ask_for_nothing_that_the_policies_do_not_allow(
    storage: Storage, in_process: Callable[..., None], tmp_path: Path
) -> None:
    """Every request of an ingest, a cache and a run's files, also of those that are given again, against the policies.

    The server knows no policies; what IAM would say of a request is worked out here.
    """
    in_process(ingesting, caching)
    with fault_proxy(storage.endpoint or "", Faults(rate=0)) as proxy:
        asked: set[str] = set()
        here = {"endpoint": proxy.endpoint, "region": REGION}
        index = ["image,case"]
        for number in range(4):
            pixels = np.random.default_rng(number).integers(60, 220, (64, 64, 3), dtype=np.uint8)
            uri = f"s3://tests/slides/policies/{number}.jpg"
            control.write_bytes(uri, simplejpeg.encode_jpeg(pixels), storage)
            index.append(f"{number}.jpg,c{number}")
        control.write_bytes("s3://tests/slides/policies/index.csv", "\n".join(index).encode(), storage)
        tiles = validate(IngestConfig, {
            "output": "s3://tests/tiles/policies", "tile_px": 64,
            "rows_per_shard": 2, "rows_per_group": 1, "storage": here,
            "images": {"index": "s3://tests/slides/policies/index.csv", "mpp": 0.5},
        }, "the test")  # fmt: skip
        answers = validate(CacheConfig, {
            "tiles": "s3://tests/tiles/policies", "output": "s3://tests/responses", "storage": here,
            "teacher": {"classical": True},
        }, "the test")  # fmt: skip
        proxy.heard = asked.add
        for _ in range(2):
            made = ingesting.ingest(tiles).manifest
            cached = caching.cache_responses(answers)
        name = read_table(made)["shard"][0].as_py()
        for folder in (made.uri, cached.uri):
            control.remove(f"{folder}/{name}", storage)
        assert not ingesting.ingest(tiles).reused
        assert not caching.cache_responses(answers).reused
        source = TileSource(made.uri, made.header.digest, tiles.storage, responses=cached.header.at(cached.uri))
        stream = TileStream(made, source, "", Views(64), 2, 0, 1, only=np.arange(4))
        assert sum(int(batch.valid.sum()) for batch in stream.exact_pass()) == 4
        control.probe("s3://tests/runs", tiles.storage)
        control.write_bytes("s3://tests/reports/report.html", b"page", tiles.storage)
        control.create_bytes("s3://tests/runs/policies/run.json", b"{}", tiles.storage)
        (tmp_path / "model.bin").write_bytes(b"weights")
        filesystem, path = retrying_filesystem("s3://tests/runs", tiles.storage)
        context = StorageContext(path, "policies", storage_filesystem=filesystem)
        context.persist_current_checkpoint(Checkpoint.from_directory(str(tmp_path)), "checkpoint_1")
        filesystem.delete_dir(f"{path}/policies/checkpoint_1")
    assert len(asked) > 40
    policies = Path(__file__).parents[2] / "deploy" / "policies"
    allowed = [
        each for name in ("data", "ingest") for each in json.loads((policies / f"{name}.json").read_text())["Statement"]
    ]
    assert [request for request in sorted(asked) if not is_allowed(request, allowed)] == []


_NOBODYS = "$extremelyunlikelytoexist$"
"""The bucket that pyarrow asks for before it removes a folder, to learn from the refusal which server it is."""


def is_allowed(request: str, statements: Sequence[Mapping[str, Any]]) -> bool:
    """Whether IAM would allow "METHOD /bucket/key?query" of the bucket `tests` in place of `histill`."""
    method, target = request.split(" ", 1)
    parts = urllib.parse.urlsplit(target)
    query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
    if bucket == _NOBODYS:
        return True
    assert bucket == "tests"
    resource = f"arn:aws:s3:::histill/{key}" if key else "arn:aws:s3:::histill"
    if not key:
        assert method in ("GET", "HEAD") or "delete" in query
        action = "s3:DeleteObject" if "delete" in query else "s3:ListBucket"
    elif method == "DELETE":
        action = "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject"
    else:
        action = "s3:GetObject" if method in ("GET", "HEAD") else "s3:PutObject"
    if action == "s3:DeleteObject" and not key:
        return True  # names its keys in its body; the server has been asked for each of them before
    return any(
        action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
        and any(
            fnmatchcase(resource, pattern)
            for pattern in (
                [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
            )
        )
        and is_met(statement.get("Condition", {}), query)
        for statement in statements
    )


def is_met(condition: Mapping[str, Mapping[str, Sequence[str]]], query: Mapping[str, Sequence[str]]) -> bool:
    for operator, keys in condition.items():
        assert operator == "StringLikeIfExists"
        for name, patterns in keys.items():
            assert name == "s3:prefix"
            if "prefix" in query and not any(fnmatchcase(query["prefix"][0], pattern) for pattern in patterns):
                return False
    return True
