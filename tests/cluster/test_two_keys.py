"""One key that reads the tiles, another that writes the runs: each is used for its bucket, and can do no more."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from pyarrow.fs import FileSelector

from histill.config.common import Storage
from histill.errors import InputError
from histill.local.s3 import REGION, Identity, S3Server, reader, s3_server
from histill.storage.control import exists, probe, read_bytes, write_json
from histill.storage.filesystems import arrow_filesystem, control_filesystem, storage_errors
from histill.storage.retrying import retrying_filesystem
from histill.stream.read import ReadRequest, ShardReader, TileSource
from histill.tiles.manifest import Manifest
from histill.tiles.manifest_file import read_manifest
from histill.tiles.shards import shards_of

pytestmark = pytest.mark.cluster

TILES, RUNS = "two-keys-tiles", "two-keys-runs"
PROFILES = {TILES: "reader", RUNS: "writer"}


@dataclass(frozen=True)
class Site:
    """A store with two buckets, and the environment of somebody who has a key for each of them and no other."""

    server: S3Server
    environment: dict[str, str]
    tiles: str
    runs: str
    keys: tuple[Identity, Identity]  # that read the tiles, and that write the runs

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(key.secret_key for key in self.keys)


@pytest.fixture(scope="module")
def site(tile_set: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("two-keys")
    writer = Identity("writer", (f"Read:{RUNS}", f"List:{RUNS}", f"Write:{RUNS}"))
    mine = (reader(TILES), writer)
    with s3_server(folder, TILES, mine) as server:
        with patch.dict(os.environ, server.environment()):
            control_filesystem(f"s3://{RUNS}", Storage())[0].mkdir(RUNS)
            tiles = tile_set(f"s3://{TILES}/tiles", tiles=12).uri
        file = folder / "credentials"
        file.write_text(
            "".join(
                f"[{profile}]\naws_access_key_id = {key.access_key}\naws_secret_access_key = {key.secret_key}\n"
                for profile, key in zip(PROFILES.values(), mine, strict=True)
            )
            + "[borrowed]\naws_access_key_id = key\naws_secret_access_key = secret\naws_session_token = for-an-hour\n"
        )
        file.chmod(0o600)
        environment = {
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_SHARED_CREDENTIALS_FILE": str(file),
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield Site(server, environment, tiles, f"s3://{RUNS}/runs", mine)


@pytest.fixture
def owner_of_both(site: Site, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    return Storage(profiles=PROFILES)


@pytest.fixture
def refusal(site: Site, refused_job: Callable[..., str]) -> Callable[..., str]:
    """`refusal(runs, *changes)`: the one line of a job that may not begin."""

    def run(runs: str, *changes: str) -> str:
        keys = ["name=read-only", f"runs={runs}", f"data.tiles={site.tiles}", "teacher.classical=true"]
        return refused_job("jobs/pretrain_student.py", *keys, *changes, env=site.environment, secrets=site.secrets)

    return run


def test_tiles_are_read_and_runs_are_written(site: Site, owner_of_both: Storage) -> None:
    manifest = read_manifest(site.tiles, owner_of_both)
    source = TileSource(site.tiles, manifest.header.digest, owner_of_both)
    first = ReadRequest(shards_of(manifest)[0].shard, 0, np.arange(1), np.arange(1))
    assert ShardReader().read(source, first)["entry"].to_pylist() == [0]
    probe(site.runs, owner_of_both)
    write_json(f"{site.runs}/first.json", {"kept": True}, owner_of_both)
    assert json.loads(read_bytes(f"{site.runs}/first.json", owner_of_both)) == {"kept": True}
    files, path = arrow_filesystem(site.runs, owner_of_both)
    assert [found.base_name for found in files.get_file_info(FileSelector(path))] == ["first.json"]


@pytest.mark.parametrize("uri", [f"s3://{TILES}/tiles/new", f"s3://{TILES}/runs"])
def test_the_readers_key_writes_nothing(owner_of_both: Storage, uri: str) -> None:
    with pytest.raises(InputError, match=f"denied access for {uri}"):
        probe(uri, owner_of_both)
    files, path = arrow_filesystem(uri, owner_of_both)
    with (
        pytest.raises(InputError, match="denied access"),
        storage_errors(uri, owner_of_both),
        files.open_output_stream(f"{path}/shard.parquet") as stream,
    ):
        stream.write(b"tiles")


def test_the_writers_key_reads_no_tiles(site: Site, owner_of_both: Storage) -> None:
    with pytest.raises(InputError, match="denied access"):
        exists(f"{site.tiles}/manifest.json", Storage(profiles={TILES: "writer"}))


def test_a_job_whose_outputs_go_where_its_key_only_reads(site: Site, refusal: Callable[..., str]) -> None:
    runs = f"s3://{TILES}/runs"
    said = refusal(runs, f"storage.profiles={json.dumps(PROFILES)}")
    assert said.startswith(f"error: {site.server.endpoint} denied access for {runs}; set AWS_ACCESS_KEY_ID")


def test_a_profile_that_is_missing_is_named(site: Site, refusal: Callable[..., str]) -> None:
    assert refusal(site.runs, "storage.profiles={two-keys-runs: nobody}").startswith(
        "error: storage.profiles names the AWS profile 'nobody'"
    )


def test_keys_that_expire_in_the_middle_of_a_run_are_refused(site: Site, owner_of_both: Storage) -> None:
    with pytest.raises(InputError, match=r"the AWS profile 'borrowed', whose keys on .* expire"):
        exists(f"{site.tiles}/manifest.json", Storage(profiles={TILES: "borrowed"}))


def test_keys_that_are_renewed_are_used_by_clients_opened_before(
    site: Site, owner_of_both: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile as SSO and roles make them: what gives its keys says when they expire, and is asked again in time."""
    keys = dict(zip(PROFILES.values(), site.keys, strict=True))

    def give(profile: str) -> None:
        soon = datetime.now(UTC) + timedelta(minutes=5)  # botocore asks again when less than 10 are left
        given = {"AccessKeyId": keys[profile].access_key, "SecretAccessKey": keys[profile].secret_key}
        (tmp_path / "keys").write_text(json.dumps({"Version": 1, "Expiration": soon.isoformat(), **given}))

    (tmp_path / "config").write_text(f"[profile renewed]\ncredential_process = cat {tmp_path / 'keys'}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    give("reader")
    storage = Storage(profiles={TILES: "renewed"}, attempts=1)
    manifest = read_manifest(site.tiles, storage)
    source = TileSource(site.tiles, manifest.header.digest, storage)
    first = ReadRequest(shards_of(manifest)[0].shard, 0, np.arange(1), np.arange(1))
    shards, (filesystem, path) = ShardReader(), retrying_filesystem(site.tiles, storage)
    uses: tuple[Callable[[], object], ...] = (
        lambda: shards.read(source, first),
        lambda: filesystem.get_file_info(FileSelector(path)),
        lambda: exists(f"{site.tiles}/manifest.json", storage),
    )
    for profile, refused in (("reader", False), ("writer", True), ("reader", False)):
        give(profile)
        for use in uses:
            denied = pytest.raises((InputError, OSError), match=r"ACCESS_DENIED|denied access")
            with denied if refused else nullcontext():
                use()
