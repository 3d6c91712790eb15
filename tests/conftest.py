"""Synthetic tiles, and real servers shared by the whole session; each starts when the first test asks for it."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import settings

from histill.local.ray_head import RayHead, ray_head
from histill.local.s3 import S3Server, s3_server
from histill.local.tracking import TrackingServer, mlflow_server
from histill.testing import tile_sets
from histill.tiles.manifest import Manifest


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


@pytest.fixture(autouse=True)
def _ctrl_c_stays_what_it_was() -> Iterator[None]:
    """Ray Tune and Ray Train answer it in their own way and leave it so, which is for histill to put right."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with the bucket `tests`; use a prefix of your own. No environment variable is set."""
    with s3_server(tmp_path_factory.mktemp("s3"), "tests") as server:
        yield server


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """An MLflow tracking server. No environment variable is set."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def ray_local(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray of 4 CPUs that the test's process is the driver of; its workers have the credentials of `s3`.

    The dashboard is on and the workers know the cluster's address: without either, trials that Tune stops
    early keep their placement groups. The driver's environment holds the same variables while it runs.
    """
    with ray_head(tmp_path_factory.mktemp("ray"), cpus=4, env=s3.environment(), token_auth=False) as head:
        environment = {**s3.environment(), **head.environment()}
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
            for name, here in (("connect_cluster", nullcontext), ("map_tasks", tasks), ("map_actors", actors)):
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
