"""Synthetic tiles, real servers shared by the whole session (each starts when a test first asks for it), small runs."""

import base64
import faulthandler
import json
import os
import re
import runpy
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import settings

from histill.config.load import set_value, validate
from histill.config.pretrain_student import PretrainConfig
from histill.local.ray_head import RayHead, ray_head
from histill.local.s3 import Identity, S3Server, reader, s3_server
from histill.local.tracking import TrackingServer, mlflow_server
from histill.testing import tile_sets
from histill.tiles.manifest import Manifest

ROOT = Path(__file__).parents[1]
PROGRESS = re.compile(r"\S.* +\d+% \d+/\d+ \w+(  [\d.,]+ \w+/s)?  ETA |\S+: .*no (first )?step\b|engine: ")


def pytest_configure() -> None:
    # A shell without job control has what it starts in the background ignore Ctrl-C, which tests send and answer.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Threads do nothing for small tensors, and on a busy machine they wait for each other; torch reads it on import.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Ray reads it when it is imported, which test modules may do before any fixture runs.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A loaded machine is slow now and then. The cases are the same in every run; HISTILL_FUZZ=20 looks for new ones.
    settings.register_profile("any machine", deadline=None, derandomize="HISTILL_FUZZ" not in os.environ)
    settings.load_profile("any machine")


def _suite_of(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT / "tests").parts[0]


def pytest_itemcollected(item: pytest.Item) -> None:
    """On two processes (`-n 2 --dist loadgroup`) one Ray serves all tests in one of them, and real servers all others
    in the other; what needs none of them follows file by file.

    xdist reads the marks before any conftest's hook that orders the items.
    """
    shared = {"ray_local": "ray", "chaos": "ray", "cluster": "servers"}
    together = shared.get(_suite_of(item), str(item.path.relative_to(ROOT)))
    if item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group(together))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first."""
    suites = ("ray_local", "chaos", "cluster", "behaviour", "unit")
    items.sort(key=lambda item: suites.index(_suite_of(item)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fail if xdist would deal tests out one by one, so that each process starts a Ray and all servers of its own."""
    if getattr(session.config.option, "loadgroup", False):
        alone = [item.nodeid for item in session.items if "@" not in item.nodeid]
        assert not alone, f"xdist does not know the group of {len(alone)} tests, such as {alone[0]}"


@pytest.fixture(autouse=True)
def _a_crash_says_where(pytestconfig: pytest.Config) -> None:
    """Ray's driver answers a fatal signal in its own way, to a stderr that pytest captures and loses."""
    if "ray" in sys.modules and faulthandler.is_enabled():
        faulthandler.disable()
        faulthandler.enable(pytestconfig.stash[fault_handler_stderr_fd_key])


@pytest.fixture(autouse=True)
def _ctrl_c_stays_what_it_was() -> Iterator[None]:
    """Ray Tune and Ray Train answer it in their own way and leave it so, which is for histill to put right."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="session")
def s3_reader() -> Identity:
    """Who may read the bucket `tests` of `s3`, and not write."""
    return reader("tests")


@pytest.fixture(scope="session")
def s3(s3_reader: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with the bucket `tests`; use a prefix of your own. No environment variable is set."""
    with s3_server(tmp_path_factory.mktemp("s3"), "tests", [s3_reader]) as server:
        yield server


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """An MLflow tracking server, whose webhooks may call this machine. No environment variable is set."""
    webhooks = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",  # else a new one hears nothing for up to a minute
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    with mlflow_server(tmp_path_factory.mktemp("mlflow"), env=webhooks) as server:
        yield server


@pytest.fixture(scope="session")
def ray_local(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray of 4 CPUs that the test's process is the driver of; its workers have the credentials of `s3`.

    The dashboard is on and the workers know the cluster's address: without either, trials that Tune stops
    early keep their placement groups. Metrics are exported each second. The driver's environment holds the same
    variables while it runs.
    """
    often = {"RAY_metrics_report_interval_ms": "1000"}
    env = {**s3.environment(), **often}
    with ray_head(tmp_path_factory.mktemp("ray"), cpus=4, env=env, token_auth=False) as head:
        environment = {**env, **head.environment()}
        with patch.dict(os.environ, environment):
            import ray

            ray.init(log_to_driver=False, runtime_env={"env_vars": {"RAY_ADDRESS": head.address}})
            try:
                yield head
            finally:
                ray.shutdown()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`in_process(*modules, backwards=False)`: their jobs run in the test's process, without Ray, item after item.

    `backwards`: the last item first, since results come as they are done.
    """

    def patch(*modules: ModuleType, backwards: bool = False) -> None:
        order = reversed if backwards else iter

        def tasks(function: Callable[[Any], Any], items: Sequence[Any], **_: Any) -> Iterator[Any]:
            return (function(item) for item in order(items))

        def actors(make: Callable[..., Any], arguments: tuple[Any, ...], items: Sequence[Any], _: Any) -> Iterator[Any]:
            work = make(*arguments)
            return (json.loads(json.dumps(work(item))) for item in order(items))

        for module in modules:
            for name, here in (
                ("connect_cluster", lambda **_: nullcontext()),
                ("has_cluster", lambda: False),  # the process may be the driver of other tests' Ray
                ("map_tasks", tasks),
                ("map_actors", actors),
            ):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, here)

    return patch


@pytest.fixture(scope="session")
def draw_tile() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return tile_sets.draw_tile


@pytest.fixture(scope="session")
def tile_set() -> Callable[..., Manifest]:
    return tile_sets.make_tile_set


@pytest.fixture(scope="session")
def spoil_tile() -> Callable[..., str]:
    return tile_sets.spoil_tile


@pytest.fixture(scope="session")
def mark_mask() -> Callable[..., str]:
    return tile_sets.mark_mask


@pytest.fixture(scope="session")
def truncate_shard() -> Callable[..., str]:
    return tile_sets.truncate_shard


@pytest.fixture(scope="session")
def tiles(ray_local: RayHead, s3: S3Server, tile_set: Callable[..., Manifest]) -> Manifest:
    """24 tiles of 64 px in S3; 16 to learn from, in four row groups. Do not change them."""
    return tile_set(f"s3://{s3.bucket}/ray-local/tiles")


@pytest.fixture(scope="session")
def run_keys(s3: S3Server, tracking: TrackingServer) -> dict[str, Any]:
    """The keys of a run of two epochs of four steps by two workers; `name` and `data.tiles` are missing."""
    return {
        "runs": f"s3://{s3.bucket}/runs/shared",
        "data": {"batch_size": 4, "decode_threads": 1},
        "student": {"encoder": "csat_tiny", "decoder_channels": (16, 16, 8, 8, 8)},
        "teacher": {"classical": True},
        "optimizer": {"epochs": 2},
        "workers": {"count": 2, "cpus": 0.5},
        "tracking": {"uri": tracking.uri},
    }


@pytest.fixture(scope="module")
def small_run(run_keys: dict[str, Any], s3: S3Server, request: pytest.FixtureRequest) -> dict[str, Any]:
    """`run_keys` with a folder of runs of the module's own."""
    return run_keys | {"runs": f"s3://{s3.bucket}/runs/{request.module.__name__}"}


@pytest.fixture(scope="module")
def pretraining(small_run: dict[str, Any]) -> Callable[..., PretrainConfig]:
    """`make(name, tiles, changes)`: a small run on the tile set at `tiles`; `changes` maps dotted keys to values.

    The name is that of the MLflow experiment as well.
    """
    return partial(small_pretraining, small_run)


@pytest.fixture(scope="session")
def shared_pretraining(run_keys: dict[str, Any]) -> Callable[..., PretrainConfig]:
    """`pretraining` for runs that several modules look at."""
    return partial(small_pretraining, run_keys)


def small_pretraining(
    keys: dict[str, Any], name: str, tiles: str, changes: dict[str, Any] | None = None
) -> PretrainConfig:
    values = {"name": name, "data.tiles": tiles, "tracking.experiment": name, **(changes or {})}
    for key, value in values.items():
        keys = set_value(keys, key, value)
    return validate(PretrainConfig, keys, "the test")


@pytest.fixture
def refused_job(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """`refused_job(script, *arguments, env=None, secrets=())`: runs a job in this process and returns the one line that
    it says to a user whose input is at fault. `env` stands in for all variables of S3, Ray and MLflow.
    """
    from s3fs import S3FileSystem

    def run(script: str, *arguments: str, env: Mapping[str, str] | None = None, secrets: Sequence[str] = ()) -> str:
        if env is not None:
            for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_", "MLFLOW_"))]:
                monkeypatch.delenv(name)
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            S3FileSystem.clear_instance_cache()  # which s3fs keeps with the credentials that they were made with
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        out, err = capfd.readouterr()
        assert (ended.value.code, out) == (2, ""), err
        return one_sentence(err, secrets)

    yield run
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def one_line() -> Callable[..., str]:
    """`one_line(stderr, secrets)`: the one line that a refused job has said beside its progress."""
    return one_sentence


def one_sentence(stderr: str, secrets: Sequence[str] = ()) -> str:
    assert "Traceback" not in stderr
    assert not [secret for secret in secrets if secret in stderr]
    (line,) = [line for line in stderr.splitlines() if not PROGRESS.match(line)]
    assert re.fullmatch(r"error: .* \[[a-z-]+\]", line), line
    return line
