"""Real servers shared by the whole session; each starts when the first test asks for it."""

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from histill.local.ray_head import RayHead, ray_head
from histill.local.s3 import S3Server, s3_server
from histill.local.tracking import TrackingServer, mlflow_server


def pytest_configure() -> None:
    # Ray reads it when it is imported, which test modules may do before any fixture runs.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


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
